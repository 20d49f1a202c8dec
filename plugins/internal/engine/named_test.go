package engine

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const namedRef = "registry.test/app:named"

// names makes the manifest name the TOC.
func names(table *toc.TOC, desc *ocispec.Descriptor) {
	desc.Annotations = map[string]string{toc.Annotation: toc.Digest(sha256.Sum256(table.Encode())).String()}
}

// lies makes another TOC of the layer.
func lies(table *toc.TOC, _ *ocispec.Descriptor) { table.Entries[0].Name = "lie" }

func TestRequireTOCDigests(t *testing.T) {
	p, second := newFakeProxy(t), newFakeProxy(t)
	half := func(table *toc.TOC, desc *ocispec.Descriptor) {
		if table.Entries[0].Name == "a" {
			names(table, desc)
		}
	}
	p.add(testRef, newLayers(t, half, files{"a": "a"}, files{"b": "b"}))
	p.add(namedRef, newLayers(t, names, files{"a": "a"}, files{"c": "c"}))
	c := Config{Root: t.TempDir(), RequireTOCDigests: true}
	for _, p := range []*fakeProxy{p, second} {
		c.Proxies = append(c.Proxies, Proxy{Address: p.URL, Registries: []string{"*"}})
	}
	e := openConfig(t, c)
	_, err := e.testPull(t.Context(), testRef)
	if !errors.Is(err, ErrNotAccelerated) || !strings.Contains(err.Error(), "require_toc_digests") || !strings.Contains(err.Error(), "1 of 2 layers") || strings.Contains(err.Error(), "no such image") {
		t.Errorf("got %v, want a refusal, and no other proxy to be asked", err)
	}
	if len(e.chains) != 0 {
		t.Errorf("%d chains of it are known", len(e.chains))
	}
	pull(t, e, namedRef)
	if s := wait(t, e, namedRef); !s.Vouched {
		t.Errorf("got %+v, want it vouched for", s)
	}
}

// A proxyd lied about a layer that no manifest vouched for. When one does, what the lie
// has left on the disk is not used, and no other lie takes its place.
func TestNamedTOCReplacesALie(t *testing.T) {
	p := newFakeProxy(t)
	layers := []files{{"bin": "the program"}, {"etc": "its configuration"}}
	p.add(testRef, newLayers(t, lies, layers...))
	honest := newLayers(t, names, layers...)
	p.add(namedRef, honest)
	root := t.TempDir()
	e := openEngine(t, root, p)
	ls := func(e *Engine, pulled *Pull) string {
		entries, err := os.ReadDir(mountRoot(t, e, pulled))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range entries {
			all = append(all, f.Name())
		}
		return strings.Join(all, " ")
	}
	first := pull(t, e, testRef)
	if s := wait(t, e, testRef); s.Vouched || ls(e, first) != "lie" {
		t.Fatalf("got %+v with %q, want a lie that nobody notices", s, ls(e, first))
	}
	second := pull(t, e, namedRef)
	if s := wait(t, e, namedRef); !s.Vouched || ls(e, second) != "bin etc" {
		t.Errorf("got %+v with %q, want the files of the layers", s, ls(e, second))
	}
	check(t, e, honest)

	p.add("registry.test/app:again", newLayers(t, func(table *toc.TOC, _ *ocispec.Descriptor) { table.Entries[0].Name = "other" }, layers...))
	_, err := e.testPull(t.Context(), "registry.test/app:again")
	if !errors.Is(err, ErrNotAccelerated) || !errors.Is(err, toc.ErrInvalid) || !strings.Contains(err.Error(), "was pulled before") {
		t.Errorf("got %v, want the TOC that the manifest does not name refused", err)
	}
	if got := ls(e, second); got != "bin etc" {
		t.Errorf("got %q after it", got)
	}
	closeEngine(t, e, false)
	e = openEngine(t, root, p)
	second = pull(t, e, namedRef)
	if s := wait(t, e, namedRef); !s.Vouched || ls(e, second) != "bin etc" {
		t.Errorf("after a restart: got %+v with %q", s, ls(e, second))
	}
	if _, err := os.Stat(filepath.Join(e.objects.Dir(), honest.layers[0].Objects[0].Digest.Path())); err != nil {
		t.Error(err)
	}
}

// What a manifest names is no matter of the proxyd that is asked: the next one is.
func TestNamedTOCOfAnotherProxy(t *testing.T) {
	liar, p := newFakeProxy(t), newFakeProxy(t)
	layer := files{"a": "a"}
	honest, lie := newLayers(t, names, layer), newLayers(t, lies, layer)
	lie.manifest, lie.config, lie.header.Blobs = honest.manifest, honest.config, honest.header.Blobs
	liar.add(testRef, lie)
	p.add(testRef, honest)
	e := openEngine(t, t.TempDir(), liar)
	if _, err := e.testPull(t.Context(), testRef); !errors.Is(err, toc.ErrInvalid) || !errors.Is(err, ErrNotAccelerated) || !strings.Contains(err.Error(), "names sha256:") {
		t.Errorf("got %v, want the lie refused", err)
	}
	e = openEngine(t, t.TempDir(), liar, p)
	pull(t, e, testRef)
	if s := wait(t, e, testRef); s.Proxy != p.URL || !s.Vouched {
		t.Errorf("got %+v, want it from the honest proxy", s)
	}
}
