package engine

import "testing"

// What was asked for on demand counts even if it comes when the image is whole; what comes
// for an image that cost nothing is of others.
func TestStatusCountsWhatComesLate(t *testing.T) {
	for name, tc := range map[string]struct {
		ref  ref
		want int64
	}{
		"under way":       {ref{rec: refRecord{WireBytes: 10}}, 85},
		"whole":           {ref{rec: refRecord{WireBytes: 70, Done: 1}, counted: 60}, 85},
		"was whole":       {ref{rec: refRecord{WireBytes: 10, Done: 1}}, 10},
		"after a restart": {ref{rec: refRecord{WireBytes: 70, Done: 1}}, 70},
	} {
		tc.ref.img = &image{}
		tc.ref.img.meter.add(75)
		if got := tc.ref.status(refKey{}).WireBytes; got != tc.want {
			t.Errorf("%s: got %d bytes, want %d", name, got, tc.want)
		}
	}
}
