package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// indexed counts how often proxyd has told that it indexed a reference.
func (p *testProxyd) indexed(t *testing.T, ref string) int {
	t.Helper()
	b, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "msg=indexed") && strings.Contains(line, "ref="+ref+" ") {
			n++
		}
	}
	return n
}

// atOnce pulls an image that proxyd must know already.
func (p *testProxyd) atOnce(t *testing.T, img *testImage, creds *wire.Credentials) {
	t.Helper()
	got := p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Credentials: creds})
	got.check(t, img.files)
	if got.progress > 0 || got.retried {
		t.Errorf("%s: %d progress frames, retried %v: it was not indexed before its first pull", img.ref, got.progress, got.retried)
	}
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (p *testProxyd) hook(t *testing.T, route, authorization, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+route, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// A registry tells of pushes: the image is indexed before its first pull, and a tag
// that is pushed again is never served stale, however long answers are believed.
func TestPushedImagesAreIndexed(t *testing.T) {
	p := startProxyd(t, fmt.Sprintf("[registries]\ncache_ttl = \"1h\"\n[hooks]\ntoken_file = %q\n", secretFile(t, "old\nhook-token\n")))
	reg := startRegistryWith(t, false, `notifications:
  endpoints:
    - name: starlight
      url: `+p.url+`/hooks/distribution
      headers:
        Authorization: [Bearer hook-token]
      timeout: 5s
      threshold: 3
      backoff: 1s
`)
	for i, files := range []map[string][]byte{someFiles(1, 100), someFiles(2, 100)} {
		img := reg.push(t, "lib/app", "latest", files)
		waitFor(t, func() bool { return p.indexed(t, img.ref) == i+1 })
		p.atOnce(t, img, nil)
	}

	quiet := startRegistry(t, false)
	img := quiet.push(t, "lib/other", "1", someFiles(3, 50))
	harbor := fmt.Sprintf(`{"type":"PUSH_ARTIFACT","occur_at":1,"operator":"admin","event_data":{"resources":[{"digest":"%s","tag":"1","resource_url":%q}],
		"repository":{"name":"other","namespace":"lib","repo_full_name":"lib/other","repo_type":"private"}}}`, img.manifest, img.ref)
	for _, wrong := range []string{"", "Bearer ", "Bearer wrong", "Basic hook-token"} {
		if got := p.hook(t, "/hooks/harbor", wrong, harbor); got != http.StatusUnauthorized {
			t.Errorf("authorization %q: got %d, want 401", wrong, got)
		}
	}
	if got := p.hook(t, "/hooks/harbor", "hook-token", "no JSON"); got != http.StatusBadRequest {
		t.Errorf("no JSON: got %d, want 400", got)
	}
	if got := p.hook(t, "/hooks/harbor", "hook-token", `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":"`+strings.Repeat("x", 2<<20)+`"}]}}`); got != http.StatusBadRequest {
		t.Errorf("2 MiB: got %d, want 400", got)
	}
	if got := p.hook(t, "/hooks/harbor", "hook-token", harbor); got != http.StatusOK {
		t.Fatalf("got %d from a good hook", got)
	}
	waitFor(t, func() bool { return p.indexed(t, img.ref) == 1 })
	p.atOnce(t, img, nil)

	// Without a token file there are no hooks.
	if got := startProxyd(t, "").hook(t, "/hooks/harbor", "", harbor); got == http.StatusOK {
		t.Error("hooks without tokens are open")
	}
}

// Repositories that are polled are indexed with proxyd's own credentials, which
// nobody else gets anything for.
func TestPolledRepositoriesAreIndexed(t *testing.T) {
	reg := startRegistry(t, true)
	login := base64.StdEncoding.EncodeToString([]byte(reg.user + ":" + password))
	p := startProxyd(t, fmt.Sprintf("[index]\nauth_file = %q\ninterval = \"1s\"\n[[index.repositories]]\nname = %q\ntags = [\"v*\"]\n",
		secretFile(t, `{"auths":{"`+reg.host+`":{"auth":"`+login+`"}}}`), reg.host+"/lib/app"))
	other := reg.push(t, "lib/app", "nightly", someFiles(1, 20))
	img := reg.push(t, "lib/app", "v1", someFiles(2, 100))
	waitFor(t, func() bool { return p.indexed(t, img.ref) == 1 })
	p.atOnce(t, img, &wire.Credentials{Username: reg.user, Secret: password})
	if code := p.code(t, wire.RouteDelta, wire.DeltaRequest{Ref: img.ref, Platform: platform}); code != wire.CodeUnauthorized {
		t.Errorf("without credentials: got %q, want %q", code, wire.CodeUnauthorized)
	}
	again := reg.push(t, "lib/app", "v1", someFiles(3, 100))
	waitFor(t, func() bool { return p.indexed(t, img.ref) == 2 })
	p.atOnce(t, again, &wire.Credentials{Username: reg.user, Secret: password})
	if p.indexed(t, other.ref) != 0 {
		t.Error("a tag was indexed that matches no pattern")
	}
	if b, err := os.ReadFile(p.log); err != nil || strings.Contains(string(b), login) || strings.Contains(string(b), password) {
		t.Errorf("the log tells the password (%v)", err)
	}
}
