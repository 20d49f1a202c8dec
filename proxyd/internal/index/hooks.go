package index

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

const (
	// maxHook is far above what registries send at once.
	maxHook = 1 << 20
	// maxName is the longest reference that is taken.
	maxName = 512
)

// Hooks are what registries call when something was pushed:
//
//	POST /hooks/distribution[?registry=HOST]   notifications of distribution
//	POST /hooks/harbor                         webhooks of Harbor
//
// Callers show one of tokens in the header Authorization, with "Bearer " before it
// or without. HOST is how nodes call the registry, if that is not how the client did
// that pushed.
func (x *Indexer) Hooks(tokens []string) http.Handler {
	mux := http.NewServeMux()
	sums := make([][sha256.Size]byte, len(tokens))
	for i, t := range tokens {
		sums[i] = sha256.Sum256([]byte(t))
	}
	for route, refs := range map[string]func(*http.Request, *json.Decoder) ([]pushed, error){
		"POST /hooks/distribution": distribution, "POST /hooks/harbor": harbor,
	} {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			if !allowed(sums, r.Header.Get("Authorization")) {
				http.Error(w, "a token is needed in the header Authorization", http.StatusUnauthorized)
				return
			}
			all, err := refs(r, json.NewDecoder(http.MaxBytesReader(w, r.Body, maxHook)))
			if err != nil {
				http.Error(w, "malformed notification", http.StatusBadRequest)
				return
			}
			for _, p := range all {
				// A digest of another algorithm is refused when the image is asked for.
				want, _ := toc.ParseDigest(p.digest)
				if len(p.ref) <= maxName && !x.Add(p.ref, want) {
					// The registry tries again.
					http.Error(w, "too many images wait to be indexed", http.StatusServiceUnavailable)
					return
				}
			}
			w.WriteHeader(http.StatusOK) // distribution repeats what is answered by other codes
		})
	}
	return mux
}

// pushed is what a registry says was pushed.
type pushed struct{ ref, digest string }

func allowed(sums [][sha256.Size]byte, header string) bool {
	token := strings.TrimPrefix(header, "Bearer ")
	sum := sha256.Sum256([]byte(token))
	ok := 0
	for i := range sums {
		ok |= subtle.ConstantTimeCompare(sums[i][:], sum[:])
	}
	return ok == 1 && token != ""
}

// distribution reads an envelope of events.
func distribution(r *http.Request, d *json.Decoder) ([]pushed, error) {
	var envelope struct {
		Events []struct {
			Action string `json:"action"`
			Target struct {
				Repository string `json:"repository"`
				Tag        string `json:"tag"`
				Digest     string `json:"digest"`
			} `json:"target"`
			Request struct {
				Host string `json:"host"`
			} `json:"request"`
		} `json:"events"`
	}
	if err := d.Decode(&envelope); err != nil {
		return nil, err
	}
	var refs []pushed
	for _, e := range envelope.Events {
		host := e.Request.Host
		if named := r.URL.Query().Get("registry"); named != "" {
			host = named
		}
		// Pushes of blobs, and of manifests of an index, have no tag.
		if e.Action == "push" && e.Target.Tag != "" && host != "" {
			refs = append(refs, pushed{host + "/" + e.Target.Repository + ":" + e.Target.Tag, e.Target.Digest})
		}
	}
	return refs, nil
}

// harbor reads a webhook, in Harbor's own form or as a CloudEvent.
func harbor(_ *http.Request, d *json.Decoder) ([]pushed, error) {
	type data struct {
		Resources []struct {
			Tag    string `json:"tag"`
			Digest string `json:"digest"`
			URL    string `json:"resource_url"`
		} `json:"resources"`
	}
	var hook struct {
		Type  string `json:"type"`
		Data  data   `json:"event_data"`
		Cloud data   `json:"data"`
	}
	if err := d.Decode(&hook); err != nil {
		return nil, err
	}
	var all data
	switch hook.Type {
	case "PUSH_ARTIFACT":
		all = hook.Data
	case "harbor.artifact.pushed":
		all = hook.Cloud
	}
	var refs []pushed
	for _, r := range all.Resources {
		// What was pushed without a tag, such as the manifests of an index, has its
		// digest there.
		if r.Tag != "" && !strings.Contains(r.Tag, ":") && r.URL != "" {
			refs = append(refs, pushed{r.URL, r.Digest})
		}
	}
	return refs, nil
}
