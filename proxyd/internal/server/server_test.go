package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/delta"
	"github.com/starlight-delta/starlight/proxyd/wire"
	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

func TestWireError(t *testing.T) {
	for code, status := range statuses {
		e := wireError(fmt.Errorf("wrapped: %w", &wire.Error{Code: code, Message: "m"}))
		rec := httptest.NewRecorder()
		writeError(rec, e)
		var got wire.Error
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || rec.Code != status || got.Code != code || got.Message != "m" {
			t.Errorf("%s: got %d %+v, %v; want %d", code, rec.Code, got, err, status)
		}
	}
	secret := errors.New("open /secret: hunter2")
	for _, tt := range []struct {
		err  error
		code string
	}{
		{secret, wire.CodeInternal},
		{&wire.Error{Code: "no such code", Message: "hunter2"}, wire.CodeInternal},
		{fmt.Errorf("%w: %w", secret, context.DeadlineExceeded), wire.CodeBusy},
		{fmt.Errorf("%w: %w", secret, context.Canceled), wire.CodeBusy},
		{fmt.Errorf("%w: %w", secret, toc.ErrInvalid), wire.CodeUnsupported},
	} {
		if got := wireError(tt.err); got.Code != tt.code || got.Message == "" || slices.Contains([]string{tt.err.Error(), "hunter2"}, got.Message) {
			t.Errorf("%v: got %v, want %s", tt.err, got, tt.code)
		}
	}
}

func TestOrderCodec(t *testing.T) {
	objects := make([]toc.Object, 1000)
	objects[7].Size = 9 * toc.PieceSize
	r := rand.New(rand.NewPCG(1, 2))
	order := delta.Order{Hot: 300, Group: "web", Times: []uint32{0, 5, 5, 70000}}
	for _, i := range r.Perm(1000) {
		it := delta.Item{Object: uint32(i)}
		if i == 7 {
			it.First, it.Pieces = 2, 3
		}
		order.Items = append(order.Items, it)
	}
	order.Items = append(order.Items, delta.Item{Object: 7}, delta.Item{Object: 999, First: 1<<32 - 1})
	got, ok := decodeOrder(encodeOrder(order), objects)
	if !ok || got.Hot != order.Hot || got.Group != order.Group || !slices.Equal(got.Times, order.Times) || !slices.Equal(got.Items, order.Items) {
		t.Error("an order does not survive")
	}
	items := func(hot, n int, object uint32) []byte {
		return encodeOrder(delta.Order{Items: slices.Repeat([]delta.Item{{Object: object}}, n), Hot: hot})
	}
	for name, b := range map[string][]byte{
		"empty": nil, "old": {0, 0}, "cut": {orderVersion, 0, 0, 0, 0x80}, "no hot": {orderVersion}, "cut range": {orderVersion, 0, 0, 0, 2},
		"cut group": {orderVersion, 0, 200, 'g'}, "times of what is not hot": {orderVersion, 0, 0, 1, 0},
		"out of range": items(0, 1, 1000), "too long": items(0, 2017, 0), "too hot": items(2, 1, 0),
	} {
		if _, ok := decodeOrder(b, objects); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCacheLoadsOnceAndStaysWithinItsCost(t *testing.T) {
	var evicted, loads atomic.Int64
	c := newCache[int](10, func(int) { evicted.Add(1) })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for k := range 5 {
				if v, err := c.get(t.Context(), k, time.Minute, func(context.Context) (int, int64, error) {
					loads.Add(1)
					return k, 2, nil
				}); v != k || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			}
		})
	}
	wg.Wait()
	if loads.Load() != 5 || evicted.Load() != 0 {
		t.Errorf("got %d loads and %d evictions, want 5 and 0", loads.Load(), evicted.Load())
	}
	boom := func(context.Context) (int, int64, error) { panic("hostile") }
	if _, err := c.get(t.Context(), 99, time.Minute, boom); err == nil {
		t.Error("a panic is no error")
	}
	if _, err := c.get(t.Context(), 5, time.Minute, func(context.Context) (int, int64, error) { return 5, 9, nil }); err != nil || evicted.Load() != 5 {
		t.Errorf("got %v and %d evictions, want 5", err, evicted.Load())
	}
	c.close()
	if evicted.Load() != 6 || c.cost != 0 {
		t.Errorf("after close: %d evictions, cost %d", evicted.Load(), c.cost)
	}
}

func TestAdmission(t *testing.T) {
	limits := DefaultLimits()
	for name, tt := range map[string]struct {
		cfg   Config
		token string
		code  int
	}{
		"open":           {Config{Limits: limits}, "", http.StatusOK},
		"right token":    {Config{Limits: limits, Tokens: []string{"a", "b"}}, "Bearer b", http.StatusOK},
		"wrong token":    {Config{Limits: limits, Tokens: []string{"a"}}, "Bearer b", http.StatusForbidden},
		"no token":       {Config{Limits: limits, Tokens: []string{"a"}}, "", http.StatusForbidden},
		"no certificate": {Config{Limits: limits, ClientCert: true}, "", http.StatusForbidden},
		"no slot":        {Config{Limits: Limits{Stall: time.Minute}}, "", http.StatusServiceUnavailable},
	} {
		tt.cfg.Metrics, tt.cfg.Log = NewMetrics(), slog.New(slog.DiscardHandler)
		s := New(tt.cfg)
		for path, want := range map[string]int{wire.RoutePing: tt.code, "/healthz": http.StatusOK} {
			req := httptest.NewRequest(http.MethodGet, path, nil)
			req.Header.Set("Authorization", tt.token)
			rec := httptest.NewRecorder()
			s.ServeHTTP(rec, req)
			if rec.Code != want {
				t.Errorf("%s: %s: got %d, want %d", name, path, rec.Code, want)
			}
		}
	}
}

func TestLoggable(t *testing.T) {
	for s, want := range map[string]string{
		"host:1/repo@sha256:00": "host:1/repo@sha256:00", "https://u:p@h/x": "(malformed)", "u:p@h/x": "(malformed)",
	} {
		if got := loggable(s); got != want {
			t.Errorf("%s: got %s, want %s", s, got, want)
		}
	}
}

// TestPauseForOthers: what a start does not read waits for what the starts of other
// images of the same worker read, as long as that goes on.
func TestPauseForOthers(t *testing.T) {
	var s streams
	img := &image{delta: emptyImage(t)}
	open := func(worker string, hot int) *stream { return s.open("r", worker, img, &delta.Plan{Hot: hot}) }
	st := open("a", 1)
	if s.pause(st, 1, 0) != nil || st.hot.Load() {
		t.Error("a stream alone pauses, or still is hot after its turn")
	}
	for name, tt := range map[string]struct {
		worker string
		hot    int
		age    time.Duration
		want   bool
	}{
		"hot":            {"a", 1, 0, true},
		"cold":           {"a", 0, 0, false},
		"another worker": {"b", 1, 0, false},
		"stuck":          {"a", 1, 2 * stuck, false},
	} {
		other := open(tt.worker, tt.hot)
		other.moved.Store(time.Now().Add(-tt.age).UnixNano())
		if got := s.pause(st, 1, 0) != nil; got != tt.want {
			t.Errorf("%s: pauses %v, want %v", name, got, tt.want)
		}
		s.close(other, false)
	}
	nameless := open("", 1)
	open("", 1)
	if s.pause(nameless, 1, 0) != nil {
		t.Error("workers without a name wait for each other")
	}
	other := open("a", 1)
	wait := s.pause(st, 1, 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait(t.Context())
	}()
	s.pause(other, 1, 0) // it is cold now
	<-done
}

// TestTurns: what starts read of several images goes side by side: by bytes, or by the
// times of the traces of one group.
func TestTurns(t *testing.T) {
	for name, tt := range map[string]struct {
		groups [3]string // of the stream and two others
		sent   [3]int64
		times  [3]int64
		slow   bool // the others
		want   bool
	}{
		"level":             {want: false},
		"ahead":             {sent: [3]int64{2 * lead, 0, 2 * lead}, want: true},
		"ahead of slow":     {sent: [3]int64{2 * lead, 0, 2 * lead}, slow: true, want: false},
		"within the lead":   {sent: [3]int64{lead, 0, 0}, want: false},
		"behind":            {sent: [3]int64{0, 2 * lead, lead}, want: false},
		"group":             {groups: [3]string{"g", "g", "g"}, sent: [3]int64{2 * lead, 0, 0}, times: [3]int64{10, 20, 30}, want: false},
		"early in group":    {groups: [3]string{"g", "g", "g"}, times: [3]int64{500, 20, 900}, want: true},
		"another in group":  {groups: [3]string{"g", "g", "other"}, times: [3]int64{500, 20, 900}, want: false},
		"group and another": {groups: [3]string{"g", "g", ""}, sent: [3]int64{2 * lead, 0, 0}, want: true},
	} {
		var s streams
		img := &image{delta: emptyImage(t)}
		var all [3]*stream
		for i := range all {
			all[i] = s.open("r", "a", img, &delta.Plan{Hot: 1, Group: tt.groups[i]})
			all[i].sent.Store(tt.sent[i])
			all[i].time.Store(tt.times[i])
			if tt.slow && i > 0 {
				all[i].moved.Store(time.Now().Add(-2 * slow * 3 / 4).UnixNano())
			}
		}
		if got := s.ahead(all[0]); got != tt.want {
			t.Errorf("%s: waits %v, want %v", name, got, tt.want)
		}
	}
	// Who comes later begins behind the others.
	var s streams
	img := &image{delta: emptyImage(t)}
	s.open("r", "a", img, &delta.Plan{Hot: 1}).sent.Store(9 * lead)
	if got := s.open("r", "a", img, &delta.Plan{Hot: 1}).sent.Load(); got != 8*lead {
		t.Errorf("begins at %d", got)
	}
}

// TestJointForgets: what was named and never came, and what was planned long ago, is not
// kept.
func TestJointForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var j joint
		known := func() int {
			j.mu.Lock()
			defer j.mu.Unlock()
			return len(j.m)
		}
		st := &stream{}
		settle := j.arrive("w", "a")
		go func() {
			time.Sleep(time.Second)
			settle(st)
			settle(nil) // counts no more
		}()
		began := time.Now()
		streams, rest, err := j.before(t.Context(), "w", []string{"never", "a", "nor this"})
		if err != nil || len(streams) != 1 || streams[0] != st || !slices.Equal(rest, []string{"a"}) {
			t.Errorf("got %v, %v, %v, want the stream of a", streams, rest, err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v, want until the other was planned", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := j.before(ctx, "w", []string{"gone"}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if _, _, err := j.before(t.Context(), "", []string{"a"}); err != nil || known() != 1 {
			t.Errorf("%v; %d are known, want one", err, known())
		}
		j.arrive("w", "") // nobody can name it
		time.Sleep(remembered)
		synctest.Wait()
		if n := known(); n != 0 {
			t.Errorf("%d are known at the end", n)
		}
		j.arrive("w", "busy")
		if streams, _, err := j.before(t.Context(), "w", []string{"busy"}); err != nil || len(streams) != 0 {
			t.Errorf("got %v, %v for one that is never planned", streams, err)
		}
	})
}

func emptyImage(t *testing.T) *delta.Image {
	t.Helper()
	tree, err := toc.Merge()
	if err != nil {
		t.Fatal(err)
	}
	d, err := delta.NewImage(nil, tree)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A name that comes many times at once is one request's.
func TestJointRequestsOfOneName(t *testing.T) {
	for range 200 {
		var j joint
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { j.arrive("w", "a")(nil) })
		}
		wg.Wait()
		if a := j.get("w", "a"); !a.arrived.Load() {
			t.Fatal("nothing has arrived")
		}
	}
}
