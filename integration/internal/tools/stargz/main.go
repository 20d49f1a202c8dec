// Command stargz is the rival: the libraries of eStargz behind the two commands
// that a comparison needs. Upstream's own commands are a module that the Go module
// proxy does not have.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) < 2 {
		return fmt.Errorf("usage: stargz serve|convert [flags]")
	}
	set := flag.NewFlagSet("stargz "+os.Args[1], flag.ExitOnError)
	switch os.Args[1] {
	case "serve":
		var s server
		set.StringVar(&s.socket, "socket", "", "address of the snapshotter's API")
		set.StringVar(&s.root, "root", "", "directory of its state")
		set.StringVar(&s.insecure, "plain-http", "", "registry that is spoken to in plain HTTP")
		_ = set.Parse(os.Args[2:]) // exits on an error
		return s.serve(ctx)
	case "convert":
		var c conversion
		set.StringVar(&c.from, "from", "", "OCI image layout")
		set.StringVar(&c.tag, "tag", "", "its tag")
		set.StringVar(&c.to, "to", "", "directory of the layout to write")
		set.StringVar(&c.first, "first", "", "file with the paths that a start opens, in their order")
		_ = set.Parse(os.Args[2:]) // exits on an error
		return c.convert(ctx)
	default:
		return fmt.Errorf("unknown command %q", os.Args[1])
	}
}
