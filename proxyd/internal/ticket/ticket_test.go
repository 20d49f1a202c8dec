package ticket

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

const image = "registry.example/app@sha256:0123"

func issuer(t *testing.T, file string) *Issuer {
	t.Helper()
	i, err := New(file, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestTicket(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	i := issuer(t, file)
	now := time.Now()
	ticket := i.Issue(image, now)
	other := issuer(t, filepath.Join(t.TempDir(), "key"))
	flipped := []byte(ticket)
	flipped[3] ^= 1 // of the time
	for name, tc := range map[string]struct {
		by            *Issuer
		ticket, image string
		at            time.Time
		want          bool
	}{
		"as issued":       {i, ticket, image, now, true},
		"after a restart": {issuer(t, file), ticket, image, now.Add(59 * time.Minute), true},
		"expired":         {i, ticket, image, now.Add(61 * time.Minute), false},
		"another image":   {i, ticket, image + "4", now, false},
		"another key":     {other, ticket, image, now, false},
		"another time":    {i, string(flipped), image, now, false},
		"empty":           {i, "", image, now, false},
		"not base64":      {i, "!", image, now, false},
		"cut off":         {i, ticket[:20], image, now, false},
		"a tag":           {i, i.Issue("registry.example/app:1", now), "registry.example/app:1", now, false},
		"nobody issues":   {nil, ticket, image, now, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.by.Good(tc.ticket, tc.image, tc.at); got != tc.want {
				t.Errorf("got %v", got)
			}
		})
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", st.Mode(), err)
	}
	if (*Issuer)(nil).Issue(image, now) != "" {
		t.Error("a ticket from nobody")
	}
}

func TestBadKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(file, time.Hour); err == nil {
		t.Error("a short key is taken")
	}
}
