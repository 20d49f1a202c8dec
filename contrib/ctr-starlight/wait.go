package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func waitCommand() *cli.Command {
	return &cli.Command{
		Name:          "wait",
		Usage:         "wait until everything of an image is local",
		ArgsUsage:     "REF",
		Description:   "Ends with 0 when all is local, and with 1 and the reason otherwise.",
		Flags:         []cli.Flag{&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but errors"}},
		Action:        connect(wait),
		ShellComplete: completeRefs,
	}
}

// progress shows the state of an image while it changes.
type progress interface {
	update(*api.Image)
	end() // before anything else is printed
}

func wait(ctx context.Context, c *cli.Command, client api.StarlightClient) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	stream, err := client.Wait(ctx, &api.WaitRequest{Ref: c.Args().First(), Namespace: c.String("namespace")})
	if err != nil {
		return said(ctx, err)
	}
	out := c.Root().Writer
	show := newProgress(out, c.Bool("quiet"))
	var last *api.Image
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			show.end()
			return unfinished(last, said(ctx, err))
		}
		last = r.GetImage()
		show.update(last)
	}
	show.end() // and the answer has ended well: that is what says complete
	if c.Bool("quiet") || last == nil {
		return nil
	}
	_, err = fmt.Fprintln(out, printable(summary(last)))
	return err
}

// unfinished adds to err how far the image has come, and its own trouble.
func unfinished(last *api.Image, err error) error {
	if last == nil {
		return err
	}
	err = fmt.Errorf("%w: %.1f%% of %s is local", err, percent(last), last.GetRef())
	if last.GetReason() != "" {
		err = fmt.Errorf("%w, last failure: %s", err, last.GetReason())
	}
	return err
}

func summary(i *api.Image) string {
	if i.GetMode() == api.Mode_MODE_PLAIN {
		return fmt.Sprintf("%s is complete: pulled as stock containerd does (%s)", i.GetRef(), i.GetReason())
	}
	return fmt.Sprintf("%s is complete: %d objects, %s, %s on the wire in %d requests",
		i.GetRef(), i.GetObjects(), size(i.GetBytes()), size(i.GetWireBytes()), i.GetRoundTrips())
}

func newProgress(w io.Writer, quiet bool) progress {
	if quiet {
		return nothing{}
	}
	if f, ok := w.(*os.File); ok && terminal(f) {
		return &bar{w: w, width: func() int {
			if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
				return n
			}
			return 80
		}}
	}
	return &lines{w: w, now: time.Now}
}

func terminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

type nothing struct{}

func (nothing) update(*api.Image) {}
func (nothing) end()              {}

// lines is for logs: a line at each tenth, and now and then when nothing moves.
type lines struct {
	w     io.Writer
	now   func() time.Time
	tenth int
	said  time.Time
}

func (l *lines) update(i *api.Image) {
	const silence = 10 * time.Second
	tenth, now := int(percent(i)/10), l.now()
	if !l.said.IsZero() && tenth == l.tenth && now.Sub(l.said) < silence || i.GetComplete() {
		return
	}
	l.tenth, l.said = tenth, now
	_, _ = fmt.Fprintln(l.w, printable(fmt.Sprintf("%s %5.1f%%  %s  %s",
		i.GetRef(), percent(i), sizes(i.GetBytesLocal(), i.GetBytes()), rate(i.GetRate()))))
}

func (*lines) end() {}

// bar is for terminals: one line that is written over and over.
type bar struct {
	w     io.Writer
	width func() int
	drawn bool
}

func (b *bar) update(i *api.Image) {
	_, _ = fmt.Fprint(b.w, "\r\x1b[K"+drawBar(i, b.width()))
	b.drawn = true
}

func (b *bar) end() {
	if b.drawn {
		_, _ = fmt.Fprint(b.w, "\r\x1b[K")
	}
}

// drawBar makes a line of less than width cells, which does not wrap.
func drawBar(i *api.Image, width int) string {
	figures := fmt.Sprintf(" %5.1f%%  %s  %s", percent(i), sizes(i.GetBytesLocal(), i.GetBytes()), rate(i.GetRate()))
	if left := i.GetBytes() - i.GetBytesLocal(); i.GetRate() >= 1 && left > 0 {
		// The wire is compressed: the rest may well be there before that.
		figures += "  < " + time.Duration(float64(left)/i.GetRate()*float64(time.Second)).Truncate(time.Second).String()
	}
	const most, least = 40, 10
	ref := []rune(printable(i.GetRef()))
	room := width - 1 - len(figures) - len("[] ")
	if keep := max(room-most, least); len(ref) > keep {
		ref = append([]rune{'…'}, ref[len(ref)-keep+1:]...)
	}
	cells := min(room-len(ref), most)
	if cells < least {
		return string([]rune(strings.TrimSpace(figures))[:max(0, min(len(strings.TrimSpace(figures)), width-1))])
	}
	full := int(percent(i) / 100 * float64(cells))
	return string(ref) + " [" + strings.Repeat("=", full) + strings.Repeat(" ", cells-full) + "]" + figures
}
