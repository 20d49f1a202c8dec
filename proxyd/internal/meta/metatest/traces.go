package metatest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/internal/meta"
)

func testTraces(t *testing.T, s meta.Store) {
	ctx := t.Context()
	got, err := s.Traces(ctx, digest("m"))
	want(t, "Traces of an unknown image", len(got), err, 0)
	clock := time.UnixMicro(1700000000000000)
	put := func(manifest, reporter string, ids ...string) {
		t.Helper()
		var traces []meta.Trace
		for _, id := range ids {
			clock = clock.Add(time.Microsecond)
			traces = append(traces, meta.Trace{ID: id, Reporter: reporter, Received: clock, Bytes: []byte(reporter + id + "\x00\xff")})
		}
		if err := s.PutTraces(ctx, digest(manifest), traces, meta.TraceLimits{PerReporter: 3, Total: 5}); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(manifest string) string {
		t.Helper()
		traces, err := s.Traces(ctx, digest(manifest))
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for _, tr := range traces {
			out.WriteString(tr.Reporter + tr.ID + " ")
			if string(tr.Bytes) != tr.Reporter+tr.ID+"\x00\xff" || tr.Received.After(clock) || tr.Received.Before(clock.Add(-time.Second)) {
				t.Errorf("trace %s came back as %+v", tr.ID, tr)
			}
		}
		return out.String()
	}
	put("m", "a", "1", "2")
	put("other", "a", "1")
	put("m", "a", "3", "1") // 1 again: the same one
	want(t, "one reporter", ids("m"), nil, "a1 a3 a2 ")
	put("m", "a", "4")
	want(t, "more than one reporter may have", ids("m"), nil, "a4 a1 a3 ")
	put("m", "b", "5", "6", "7")
	want(t, "more than an image may have", ids("m"), nil, "b7 b6 b5 a4 a1 ")
	want(t, "another image", ids("other"), nil, "a1 ")
}

func testProfiles(t *testing.T, s meta.Store) {
	ctx := t.Context()
	got, err := s.Profiles(ctx, "r/app")
	want(t, "Profiles of an unknown repository", len(got), err, 0)
	at := func(i int) time.Time { return time.UnixMicro(1700000000000000 + int64(i)) }
	for i, m := range []string{"1", "2", "1", "3"} {
		p := &meta.Profile{Manifest: digest(m), Updated: at(i), Bytes: []byte(fmt.Sprint(m, i))}
		if err := s.PutProfile(ctx, "r/app", p, 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutProfile(ctx, "r/other", &meta.Profile{Manifest: digest("9"), Updated: at(9), Bytes: []byte{}}, 2); err != nil {
		t.Fatal(err)
	}
	got, err = s.Profiles(ctx, "r/app")
	want(t, "Profiles", got, err, []meta.Profile{
		{Manifest: digest("3"), Updated: at(3), Bytes: []byte("33")}, {Manifest: digest("1"), Updated: at(2), Bytes: []byte("12")},
	})
}
