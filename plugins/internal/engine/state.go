package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// state is what survives a restart: the images whose chains may be mounted, and
// what references were pulled as. Everything else (layers, chains, virtual blobs)
// follows from the images and the TOC files. Values are JSON.
type state struct{ db *bbolt.DB }

var (
	bucketImages = []byte("images") // manifest digest (32 bytes) → imageRecord
	bucketRefs   = []byte("refs")   // namespace 0 ref [0 platform] → refRecord
	bucketNode   = []byte("node")   // "boot" → boot and mount at which the state was last opened
)

// imageRecord is an image by its manifest.
type imageRecord struct {
	Name     string             `json:"name"`     // host/repo
	Platform string             `json:"platform"` // as asked for
	Manifest ocispec.Descriptor `json:"manifest"`
	Layers   []layerRecord      `json:"layers"`
	Objects  int64              `json:"objects"` // of the tree
	Bytes    int64              `json:"bytes"`
	Complete bool               `json:"complete"` // every object is local and on the disk
	Pulled   time.Time          `json:"pulled"`
	// Ticket of the proxy that served it; a secret, worth this image only.
	Ticket string `json:"ticket,omitempty"`
}

type layerRecord struct {
	DiffID     toc.Digest         `json:"diffID"`
	TOC        toc.Digest         `json:"toc,omitzero"` // sha256 of the encoded one
	Descriptor ocispec.Descriptor `json:"descriptor"`
}

// named tells whether the manifest of the image names the TOC.
func (l *layerRecord) named() bool {
	d, err := toc.Named(l.Descriptor.Annotations)
	return err == nil && !d.IsZero() && d == l.TOC
}

// named tells whether the manifest names the TOCs of all layers.
func (i *imageRecord) named() bool {
	return !slices.ContainsFunc(i.Layers, func(l layerRecord) bool { return !l.named() })
}

// refRecord is the last pull of a reference in a namespace.
type refRecord struct {
	Target     digest.Digest `json:"target,omitempty"`
	Manifest   toc.Digest    `json:"manifest,omitzero"` // zero: plain
	Reason     string        `json:"reason,omitempty"`
	Unnamed    bool          `json:"unnamed,omitempty"` // see Engine.Name
	Proxy      string        `json:"proxy,omitempty"`
	WireBytes  int64         `json:"wireBytes"`
	RoundTrips int64         `json:"roundTrips"`
	Pulled     time.Time     `json:"pulled"`
	Ready      time.Duration `json:"ready"`
	Done       time.Duration `json:"done"`
}

// refKey is a reference in a namespace. Of an image that was pulled for several
// platforms the first has none here: who asks for the reference means that.
type refKey struct{ namespace, ref, platform string }

func (k refKey) bytes() []byte {
	b := []byte(k.namespace + "\x00" + k.ref)
	if k.platform != "" {
		b = append(append(b, 0), k.platform...)
	}
	return b
}

func openState(path string) (*state, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 10 * time.Second, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketImages, bucketRefs, bucketNode} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("state %s: %w", path, err)
	}
	return &state{db}, nil
}

func (s *state) close() error { return s.db.Close() }

func (s *state) load(image func(toc.Digest, imageRecord), ref func(refKey, refRecord)) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(bucketImages).ForEach(func(k, v []byte) error {
			var r imageRecord
			if len(k) != len(toc.Digest{}) {
				return fmt.Errorf("state: image key of %d bytes", len(k))
			}
			if err := json.Unmarshal(v, &r); err != nil {
				return fmt.Errorf("state: image %x: %w", k, err)
			}
			image(toc.Digest(k), r)
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketRefs).ForEach(func(k, v []byte) error {
			var r refRecord
			if err := json.Unmarshal(v, &r); err != nil {
				return fmt.Errorf("state: reference %q: %w", k, err)
			}
			ns, name, _ := strings.Cut(string(k), "\x00")
			name, platform, _ := strings.Cut(name, "\x00")
			ref(refKey{ns, name, platform}, r)
			return nil
		})
	})
}

func (s *state) putImage(d toc.Digest, r imageRecord) error { return s.put(bucketImages, d[:], r) }

func (s *state) putRef(k refKey, r refRecord) error { return s.put(bucketRefs, k.bytes(), r) }

func (s *state) put(bucket, key []byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Put(key, b) })
}

// drop forgets images and references in one transaction.
func (s *state) drop(images []toc.Digest, refs []refKey) error {
	if len(images) == 0 && len(refs) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, d := range images {
			if err := tx.Bucket(bucketImages).Delete(d[:]); err != nil {
				return err
			}
		}
		for _, k := range refs {
			if err := tx.Bucket(bucketRefs).Delete(k.bytes()); err != nil {
				return err
			}
		}
		return nil
	})
}

// rebooted tells whether the machine has been started, or the file system of root
// been mounted, anew since the last call: then writes that were not synced may be lost.
func (s *state) rebooted(root string) (bool, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return true, fmt.Errorf("boot ID: %w", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, root, 0, statxMountID, &st); err == nil && st.Mask&statxMountID != 0 {
		id = fmt.Appendf(bytes.TrimSpace(id), " %d", st.Mnt_id)
	}
	var before string
	err = s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketNode)
		before = string(b.Get([]byte("boot")))
		if before == string(id) {
			return nil
		}
		return b.Put([]byte("boot"), id)
	})
	return before != string(id), err
}

// statxMountID is STATX_MNT_ID_UNIQUE of Linux 6.8: the number of a mount, which is
// never used again.
const statxMountID = 0x4000
