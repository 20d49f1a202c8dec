package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/corpus"
	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/wan"
)

// pollInterval of ready checks; it is the error of a measured time.
const pollInterval = 5 * time.Millisecond

// Container is a container that ctr runs in the foreground.
type Container struct {
	*process.Process
	ID   string
	node *Node
}

// Run is what to run and how.
type Run struct {
	Ref, ID     string
	Snapshotter string // "" is the default of the node
	Namespace   string // of containerd, default "default"
	Argv        []string
	Flags       []string
}

// Run starts a container in the network namespace of the node.
func (n *Node) Run(ctx context.Context, r Run) (*Container, error) {
	if r.Namespace == "" {
		r.Namespace = "default"
	}
	args := []string{"-n", r.Namespace, "run", "--rm", "--net-host", "--env", "HOME=/root"}
	if r.Snapshotter != "" {
		args = append(args, "--snapshotter", r.Snapshotter)
	}
	args = append(append(append(args, r.Flags...), r.Ref, r.ID), r.Argv...)
	p, err := n.StartCtr(ctx, args...)
	if err != nil {
		return nil, err
	}
	return &Container{Process: p, ID: r.ID, node: n}, nil
}

// Output runs a command in a new container and returns what it wrote.
func (n *Node) Output(ctx context.Context, r Run) (string, error) {
	if r.Namespace == "" {
		r.Namespace = "default"
	}
	args := []string{"-n", r.Namespace, "run", "--rm", "--net-host"}
	if r.Snapshotter != "" {
		args = append(args, "--snapshotter", r.Snapshotter)
	}
	return n.Ctr(ctx, append(append(append(args, r.Flags...), r.Ref, r.ID), r.Argv...)...)
}

// WaitReady waits until the application is of use.
func (c *Container) WaitReady(ctx context.Context, r corpus.Ready) error {
	ctx, cancel := context.WithTimeout(ctx, r.Deadline())
	defer cancel()
	ns := c.node.c.Namespace
	var err error
	switch r.Kind {
	case "log":
		return c.WaitLog(ctx, r.Pattern)
	case "exit":
		return c.Wait(ctx)
	case "tcp":
		err = waitTCP(ctx, ns, fmt.Sprintf("127.0.0.1:%d", r.Port), c.Done())
	case "http":
		client := ns.Client()
		defer client.CloseIdleConnections()
		err = waitHTTP(ctx, client, fmt.Sprintf("http://127.0.0.1:%d%s", r.Port, r.Path), r.Body, c.Done())
	default:
		return fmt.Errorf("unknown kind of ready check %q", r.Kind)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", c.Name, err, c.Log.Tail(2000))
	}
	return nil
}

// Remove kills the container and everything of it.
func (c *Container) Remove(ctx context.Context) error {
	select {
	case <-c.Done():
		return nil // --rm has removed it
	default:
	}
	// With --rm, ctr removes the container when its task ends.
	_, killErr := c.node.Ctr(ctx, "tasks", "kill", "-s", "SIGKILL", c.ID)
	select {
	case <-c.Done(): // killed, or ended just before
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("container %s does not end", c.ID), killErr)
	case <-ctx.Done():
		return errors.Join(ctx.Err(), killErr)
	}
}

var errEnded = errors.New("the process has ended")

// poll calls ok until it succeeds, the process ends or ctx does.
func poll(ctx context.Context, ended <-chan struct{}, ok func() error) error {
	t := time.NewTicker(pollInterval)
	defer t.Stop()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-t.C:
		case <-ended:
			return errors.Join(errEnded, err)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func waitTCP(ctx context.Context, ns *wan.Namespace, addr string, ended <-chan struct{}) error {
	return poll(ctx, ended, func() error {
		c, err := ns.Dial(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func waitHTTP(ctx context.Context, client *http.Client, url, body string, ended <-chan struct{}) error {
	re, err := regexp.Compile(body)
	if err != nil {
		return err
	}
	return poll(ctx, ended, func() error {
		b, err := get(ctx, client, url)
		if err == nil && !re.Match(b) {
			err = fmt.Errorf("the answer of %s does not match %q", url, body)
		}
		return err
	})
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return b, err
}
