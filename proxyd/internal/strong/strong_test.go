package strong

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

func noTurn(context.Context) (func(), error) { return func() {}, nil }

// program puts a script in the place of zstd, or takes it away if that is "".
func program(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if script != "" {
		if err := os.WriteFile(filepath.Join(dir, "zstd"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":/bin:/usr/bin")
	if script == "" {
		t.Setenv("PATH", dir)
	}
}

// text compresses well, but not too well.
func text(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString([]string{"static ", "const ", "char ", "return ", "(void) ", "struct "}[r.IntN(6)])
		b.WriteByte(byte('a' + r.IntN(26)))
	}
	return b.Bytes()[:n]
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return b
}

// Whatever the program does, what comes out are the contents that went in.
func TestCompress(t *testing.T) {
	zstd, err := exec.LookPath("zstd")
	if err != nil {
		t.Fatal(err, "(integration/setup installs it)")
	}
	inputs := map[string][]byte{
		"empty": {}, "short": []byte("a"), "text": text(300_000), "noise": noise(300_000), "most": text(wire.MaxData),
	}
	for name, tc := range map[string]struct {
		script string
		warns  bool
	}{
		"none":           {},
		"the real one":   {script: "exec " + zstd + ` "$@"`},
		"fails":          {script: "echo no memory >&2; exit 1", warns: true},
		"other contents": {script: "echo other | " + zstd + " -c", warns: true},
		"no frame":       {script: "exec cat", warns: true},
		"too much":       {script: "exec cat /dev/zero", warns: true},
	} {
		t.Run(name, func(t *testing.T) {
			program(t, tc.script)
			var log bytes.Buffer
			c := New(noTurn, slog.New(slog.NewTextHandler(&log, nil)))
			if one := c.Parallel() == 1; one != (tc.script == "") && runtime.GOMAXPROCS(0) > 1 {
				t.Errorf("%d at a time", c.Parallel())
			}
			for what, in := range inputs {
				out, err := c.Compress(t.Context(), []byte("before"), in)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(out, []byte("before")) {
					t.Fatalf("%s: what was there is gone", what)
				}
				got, err := wire.Decompress(nil, out[len("before"):], len(in))
				if err != nil || !bytes.Equal(got, in) {
					t.Errorf("%s: %v, other contents: %v", what, err, !bytes.Equal(got, in))
				}
			}
			if warned := strings.Contains(log.String(), "level=WARN"); warned != tc.warns {
				t.Errorf("warns: %v, want %v: %s", warned, tc.warns, log.String())
			}
		})
	}
}

func TestCompressEnds(t *testing.T) {
	stop := errors.New("shutting down")
	for name, script := range map[string]string{"none": "", "hangs": "exec sleep 1000"} {
		program(t, script)
		ctx, cancel := context.WithCancelCause(t.Context())
		c := New(func(ctx context.Context) (func(), error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}, slog.New(slog.DiscardHandler))
		go cancel(stop)
		if _, err := c.Compress(ctx, nil, text(1000)); !errors.Is(err, stop) {
			t.Errorf("%s: got %v, want %v", name, err, stop)
		}
	}
}

func BenchmarkCompress(b *testing.B) {
	in := text(wire.MaxData)
	for _, name := range []string{"zstd", "own"} {
		b.Run(name, func(b *testing.B) {
			c := New(noTurn, slog.New(slog.DiscardHandler))
			if name == "own" {
				c.program = ""
			}
			b.SetBytes(int64(len(in)))
			var out []byte
			for b.Loop() {
				var err error
				if out, err = c.Compress(b.Context(), out[:0], in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(in))/float64(len(out)), "ratio")
		})
	}
}
