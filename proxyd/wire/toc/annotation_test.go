package toc

import (
	"errors"
	"fmt"
	"testing"
)

func TestNamed(t *testing.T) {
	if want := fmt.Sprint(AnnotationPrefix, "v", version); Annotation != want {
		t.Errorf("the annotation is %s, and that of the version that is written is %s", Annotation, want)
	}
	d := Digest{1}
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        Digest
		invalid     bool
	}{
		"none":            {nil, Digest{}, false},
		"ours":            {map[string]string{Annotation: d.String()}, d, false},
		"another version": {map[string]string{AnnotationPrefix + "v0": d.String()}, Digest{}, false},
		"no digest":       {map[string]string{Annotation: "sha256:1"}, Digest{}, true},
		"zero":            {map[string]string{Annotation: Digest{}.String()}, Digest{}, true},
	} {
		if got, err := Named(tc.annotations); got != tc.want || errors.Is(err, ErrInvalid) != tc.invalid {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
}
