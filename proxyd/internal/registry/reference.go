package registry

import (
	"strings"

	distref "github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// reference is a parsed image reference.
type reference struct {
	host   string
	name   string        // host/repo
	tag    string        // "" if there is a digest
	digest digest.Digest // "" if there is none
}

// object is what to ask the registry for.
func (r reference) object() string {
	if r.digest != "" {
		return r.digest.String()
	}
	return r.tag
}

// parse reads a reference. A digest takes precedence over a tag.
func parse(s string) (reference, error) {
	named, err := distref.ParseNormalizedNamed(s)
	if err != nil {
		return reference{}, &wire.Error{Code: wire.CodeInvalid, Message: "malformed reference"}
	}
	r := reference{host: distref.Domain(named), name: named.Name()}
	if d, ok := named.(distref.Digested); ok {
		if d.Digest().Algorithm() != digest.SHA256 {
			return reference{}, unsupported("digest algorithm %q", d.Digest().Algorithm())
		}
		r.digest = d.Digest()
	} else if t, ok := named.(distref.Tagged); ok {
		r.tag = t.Tag()
	}
	return r, nil
}

// matchAny tells whether a host matches one of the patterns.
func matchAny(patterns []string, host string) bool {
	host = strings.ToLower(host)
	for _, p := range patterns {
		if match(strings.ToLower(p), host) {
			return true
		}
	}
	return false
}

// match matches "*" with any sequence of characters.
func match(pattern, s string) bool {
	prefix, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return false
	}
	if !strings.Contains(rest, "*") {
		return strings.HasSuffix(s, rest)
	}
	for i := range len(s) + 1 {
		if match(rest, s[i:]) {
			return true
		}
	}
	return false
}
