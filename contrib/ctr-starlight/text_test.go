package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	api "github.com/starlight-delta/starlight/plugins/api/starlight/v1"
)

func TestPercentSays100OnlyWhenComplete(t *testing.T) {
	for _, tc := range []struct {
		i    *api.Image
		want float64
	}{
		{&api.Image{}, 0},
		{&api.Image{Complete: true}, 100},
		{&api.Image{Bytes: 1000, BytesLocal: 1000}, 99.9},
		{&api.Image{Bytes: 3, BytesLocal: 1}, 33.3},
		{&api.Image{Bytes: 1 << 50, BytesLocal: 1<<50 - 1}, 99.9},
	} {
		if got := percent(tc.i); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.i, got, tc.want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, tc := range []struct{ got, want string }{
		{size(0), "0 B"},
		{size(1023), "1023 B"},
		{size(1024), "1.0 KiB"},
		{size(5 << 30), "5.0 GiB"},
		{size(5 << 50), "5120.0 TiB"},
		{sizes(512, 2048), "0.5/2.0 KiB"},
		{sizes(0, 0), "0/0 B"},
		{rate(0), "-"},
		{rate(12.5e6), "11.9 MiB/s"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

func TestBarFitsTheTerminal(t *testing.T) {
	i := half()
	i.BytesLocal = i.Bytes / 2
	if got, want := drawBar(i, 100), "…y.example/app:2 [====================                    ]  50.0%  14.8/29.6 MiB  11.9 MiB/s  < 1s"; got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
	i.Ref = "registry.example/" + strings.Repeat("ü", 100) + ":1"
	for width := range 200 {
		for _, local := range []int64{0, i.Bytes / 2, i.Bytes} {
			i.BytesLocal = local
			if got := utf8.RuneCountInString(drawBar(i, width)); got >= max(width, 1) {
				t.Fatalf("width %d: the line has %d cells", width, got)
			}
		}
	}
}

func TestBarClearsItsLine(t *testing.T) {
	var out bytes.Buffer
	b := &bar{w: &out, width: func() int { return 80 }}
	b.end()
	if out.Len() != 0 {
		t.Errorf("nothing was drawn, got %q", out.String())
	}
	b.update(half())
	b.end()
	if s := out.String(); !strings.HasPrefix(s, "\r\x1b[K") || !strings.HasSuffix(s, "\r\x1b[K") || strings.Contains(s, "\n") {
		t.Errorf("got %q", s)
	}
}

func TestLinesSpeakNowAndThen(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	l := &lines{w: &out, now: func() time.Time { return now }}
	i := half()
	i.BytesLocal = 0
	for range 250 { // 25 s without a byte
		l.update(i)
		now = now.Add(100 * time.Millisecond)
	}
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("got %d lines, want 3:\n%s", got, out.String())
	}
}
