// Package ticket issues what lets a worker that was given an image get the rest of it
// when it does not have the credentials any more, after a restart.
//
// A ticket is a time and a keyed hash over it and the image, by repository and manifest
// digest. It is worth that image only, which its holder was given already, and only at
// the proxyds that have the key. Nothing is kept of tickets.
package ticket

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// keySize is that of the hash.
const keySize = sha256.Size

// Issuer issues and checks tickets. Nil issues none and accepts none.
type Issuer struct {
	key []byte
	ttl time.Duration
}

// New makes an Issuer with the key in the file, which it makes if it is not there.
// Tickets are good for ttl.
func New(file string, ttl time.Duration) (*Issuer, error) {
	key, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(file)
	}
	if err != nil {
		return nil, fmt.Errorf("key of tickets: %w", err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("key of tickets: %s has %d bytes, not %d: remove it, and a new one is made", file, len(key), keySize)
	}
	return &Issuer{key: key, ttl: ttl}, nil
}

// makeKey makes the file whole or not at all. If another process is faster, its key is
// the one.
func makeKey(file string) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	f, err := os.CreateTemp(filepath.Dir(file), ".key-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // its link stays
	_, err = f.Write(key)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return os.ReadFile(file)
}

// Issue makes a ticket for an image, "host/repo@sha256:…".
func (i *Issuer) Issue(image string, now time.Time) string {
	if i == nil {
		return ""
	}
	t := binary.BigEndian.AppendUint64(nil, uint64(now.Add(i.ttl).Unix()))
	return base64.RawURLEncoding.EncodeToString(append(t, i.sum(t, image)...))
}

// Good tells whether ticket was issued for the image and has not expired.
func (i *Issuer) Good(ticket, image string, now time.Time) bool {
	if i == nil || !strings.Contains(image, "@") {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(ticket)
	if err != nil || len(b) != 8+sha256.Size || !hmac.Equal(b[8:], i.sum(b[:8], image)) {
		return false
	}
	return now.Before(time.Unix(int64(binary.BigEndian.Uint64(b)), 0))
}

func (i *Issuer) sum(expiry []byte, image string) []byte {
	h := hmac.New(sha256.New, i.key)
	h.Write([]byte("starlight ticket 1\x00"))
	h.Write(expiry)
	h.Write([]byte(image))
	return h.Sum(nil)
}
