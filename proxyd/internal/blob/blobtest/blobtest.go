// Package blobtest is the conformance suite of blob.Store.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/starlight-delta/starlight/proxyd/internal/blob"
)

// Run runs the suite. open returns a new, empty store.
func Run(t *testing.T, open func(*testing.T) blob.Store) {
	for _, tc := range []struct {
		name string
		f    func(*testing.T, blob.Store)
	}{
		{"RoundTrip", testRoundTrip},
		{"NotExist", testNotExist},
		{"InvisibleBeforeCommit", testInvisible},
		{"Abort", testAbort},
		{"Replace", testReplace},
		{"DeleteWhileOpen", testDeleteWhileOpen},
		{"KeyBelowKey", testKeyBelowKey},
		{"Keys", testKeys},
		{"Cancelled", testCancelled},
		{"GetLimit", testGetLimit},
		{"Concurrent", testConcurrent},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.f(t, open(t)) })
	}
}

func put(t *testing.T, s blob.Store, key, content string) {
	t.Helper()
	if err := blob.Put(t.Context(), s, key, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func wantContent(t *testing.T, s blob.Store, key, want string) {
	t.Helper()
	got, err := blob.Get(t.Context(), s, key, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%q: got %d bytes, want %d", key, len(got), len(want))
	}
}

func wantNotExist(t *testing.T, s blob.Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("Stat(%q) = %v, want ErrNotExist", key, err)
	}
	if _, err := s.Open(t.Context(), key); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("Open(%q) = %v, want ErrNotExist", key, err)
	}
	if err := s.Delete(t.Context(), key); !errors.Is(err, blob.ErrNotExist) {
		t.Errorf("Delete(%q) = %v, want ErrNotExist", key, err)
	}
}

func testRoundTrip(t *testing.T, s blob.Store) {
	big := strings.Repeat("0123456789", 300_000)
	for key, content := range map[string]string{"a": "", "b/c/d.e-f_0": "hello", "big": big} {
		put(t, s, key, content)
		wantContent(t, s, key, content)
		if n, err := s.Stat(t.Context(), key); err != nil || n != int64(len(content)) {
			t.Errorf("Stat(%q) = %d, %v; want %d", key, n, err, len(content))
		}
	}
	r, err := s.Open(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if _, err := r.ReadAt(b, 2_000_005); err != nil || string(b) != "5678901234" {
		t.Errorf("ReadAt = %q, %v", b, err)
	}
	if n, err := r.ReadAt(b, int64(len(big))-3); n != 3 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt over the end = %d, %v; want 3, EOF", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "big"); err != nil {
		t.Error(err)
	}
	wantNotExist(t, s, "big")
}

func testNotExist(t *testing.T, s blob.Store) {
	wantNotExist(t, s, "nothing")
	wantNotExist(t, s, "no/such/blob")
}

func testInvisible(t *testing.T, s blob.Store) {
	w, err := s.Create(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	wantNotExist(t, s, "k")
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	wantContent(t, s, "k", "half")
	if err := w.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
	wantContent(t, s, "k", "half")
	if _, err := w.Write([]byte("more")); err == nil {
		t.Error("Write after Commit succeeded")
	}
	if err := w.Commit(); err == nil {
		t.Error("second Commit succeeded")
	}
}

func testAbort(t *testing.T, s blob.Store) {
	w, err := s.Create(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Error(err)
		}
	}
	if err := w.Commit(); err == nil {
		t.Error("Commit after Abort succeeded")
	}
	wantNotExist(t, s, "k")
}

func testReplace(t *testing.T, s blob.Store) {
	put(t, s, "k", "one")
	put(t, s, "k", "other")
	wantContent(t, s, "k", "other")
}

func testDeleteWhileOpen(t *testing.T, s blob.Store) {
	put(t, s, "k", "content")
	r, err := s.Open(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, r.Size())
	if _, err := r.ReadAt(b, 0); (err != nil && !errors.Is(err, io.EOF)) || string(b) != "content" {
		t.Errorf("read of a deleted blob: %q, %v", b, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func testKeyBelowKey(t *testing.T, s blob.Store) {
	put(t, s, "a", "x")
	wantNotExist(t, s, "a/b")
	put(t, s, "c/d", "x")
	wantNotExist(t, s, "c")
}

func testKeys(t *testing.T, s blob.Store) {
	for _, key := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", ".hidden", "A", "a b", "a\x00", "a\\b", strings.Repeat("a", 600)} {
		if _, err := s.Create(t.Context(), key); !errors.Is(err, blob.ErrKey) {
			t.Errorf("Create(%q) = %v, want ErrKey", key, err)
		}
		if _, err := s.Open(t.Context(), key); !errors.Is(err, blob.ErrKey) {
			t.Errorf("Open(%q) = %v, want ErrKey", key, err)
		}
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, blob.ErrKey) {
			t.Errorf("Stat(%q) = %v, want ErrKey", key, err)
		}
		if err := s.Delete(t.Context(), key); !errors.Is(err, blob.ErrKey) {
			t.Errorf("Delete(%q) = %v, want ErrKey", key, err)
		}
	}
}

func testCancelled(t *testing.T, s blob.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Create(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("Create = %v, want Canceled", err)
	}
	if _, err := s.Open(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("Open = %v, want Canceled", err)
	}
}

func testGetLimit(t *testing.T, s blob.Store) {
	put(t, s, "k", "12345")
	if _, err := blob.Get(t.Context(), s, "k", 4); err == nil {
		t.Error("Get over its limit succeeded")
	}
	if _, err := blob.Get(t.Context(), s, "k", 5); err != nil {
		t.Error(err)
	}
}

func testConcurrent(t *testing.T, s blob.Store) {
	content := bytes.Repeat([]byte("x"), 100_000)
	g, ctx := errgroup.WithContext(t.Context())
	for i := range 16 {
		g.Go(func() error {
			for j := range 10 {
				// Every key is written by two goroutines.
				key := fmt.Sprintf("dir/%d/%d", i/2, j)
				if err := blob.Put(ctx, s, key, content); err != nil {
					return err
				}
				got, err := blob.Get(ctx, s, key, 1<<20)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, content) {
					return fmt.Errorf("%q has other content", key)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
