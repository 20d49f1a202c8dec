package weird

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// epoch is the time of entries that have none of their own.
var epoch = time.Unix(1700000000, 0)

// layer writes the tar stream of one layer.
type layer struct {
	tw  *tar.Writer
	raw io.Writer // below tw, for what the tar package does not write
	err error
}

type option func(*tar.Header)

func mode(m int64) option      { return func(h *tar.Header) { h.Mode = m } }
func owner(u, g int) option    { return func(h *tar.Header) { h.Uid, h.Gid = u, g } }
func mtime(t time.Time) option { return func(h *tar.Header) { h.ModTime = t } }
func xattr(name, value string) option {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func (l *layer) entry(h *tar.Header, content string, opts []option) {
	if l.err != nil {
		return
	}
	h.ModTime = epoch
	for _, o := range opts {
		o(h)
	}
	h.Size = int64(len(content))
	h.Format = tar.FormatPAX
	if l.err = l.tw.WriteHeader(h); l.err != nil {
		l.err = fmt.Errorf("%q: %w", h.Name, l.err)
		return
	}
	_, l.err = io.WriteString(l.tw, content)
}

// root is the entry of "/", so that both sides know its times.
func (l *layer) root() { l.dir("./") }

func (l *layer) dir(name string, o ...option) {
	l.entry(&tar.Header{Name: strings.TrimSuffix(name, "/") + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "", o)
}

func (l *layer) file(name, content string, o ...option) {
	l.entry(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content, o)
}

func (l *layer) symlink(name, to string, o ...option) {
	l.entry(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, "", o)
}

func (l *layer) link(name, to string) {
	l.entry(&tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}, "", nil)
}

func (l *layer) device(name string, kind byte, major, minor int64, o ...option) {
	l.entry(&tar.Header{Name: name, Typeflag: kind, Devmajor: major, Devminor: minor, Mode: 0o600}, "", o)
}

func (l *layer) fifo(name string, o ...option) {
	l.entry(&tar.Header{Name: name, Typeflag: tar.TypeFifo, Mode: 0o640}, "", o)
}

// gone removes a name of a lower layer; opaque everything in a directory.
func (l *layer) gone(dir, name string) { l.file(dir+".wh."+name, "", mode(0)) }
func (l *layer) opaque(dir string)     { l.file(dir+".wh..wh..opq", "", mode(0)) }

// compression of a layer.
type compression int

const (
	gzipped compression = iota
	zstandard
	plain
)

// layerFile is a layer that lies among the blobs.
type layerFile struct {
	diffID, digest digest.Digest
	size           int64
	compression    compression
}

// writeLayer writes a layer to a blob and renames it to its digest.
func writeLayer(blobs string, c compression, fill func(*layer)) (_ layerFile, err error) {
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return layerFile{}, err
	}
	defer f.Close()
	packed, diff := sha256.New(), sha256.New()
	size := &counter{}
	out := io.MultiWriter(f, packed, size)
	var z io.WriteCloser
	switch c {
	case gzipped:
		z, err = gzip.NewWriterLevel(out, gzip.BestSpeed)
	case zstandard:
		z, err = zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	default:
		z = nopCloser{out}
	}
	if err != nil {
		return layerFile{}, err
	}
	raw := io.MultiWriter(z, diff)
	l := &layer{tw: tar.NewWriter(raw), raw: raw}
	fill(l)
	if l.err != nil {
		return layerFile{}, l.err
	}
	if err := l.tw.Close(); err != nil {
		return layerFile{}, err
	}
	if err := z.Close(); err != nil {
		return layerFile{}, err
	}
	r := layerFile{digest.NewDigest(digest.SHA256, diff), digest.NewDigest(digest.SHA256, packed), size.n, c}
	return r, os.Rename(f.Name(), blobs+"/"+r.digest.Encoded())
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// block is the unit of tar.
const block = 512

// sparse writes a file of the PAX sparse format 1.0, which the tar package reads
// but does not write: size bytes of which only the given pieces are not zero.
func (l *layer) sparse(name string, size int64, pieces map[int64]string, order ...int64) {
	if l.err != nil {
		return
	}
	var m, data strings.Builder
	fmt.Fprintf(&m, "%d\n", len(order)+1)
	for _, off := range order {
		fmt.Fprintf(&m, "%d\n%d\n", off, len(pieces[off]))
		data.WriteString(pieces[off])
	}
	fmt.Fprintf(&m, "%d\n0\n", size) // marks the end
	body := pad(m.String()) + data.String()
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", name) + record("GNU.sparse.realsize", fmt.Sprint(size))
	if l.err = l.tw.Flush(); l.err != nil {
		return
	}
	_, l.err = io.WriteString(l.raw, rawHeader("PaxHeaders.0/sparse", 'x', len(pax))+pad(pax)+
		rawHeader("GNUSparseFile.0/sparse", '0', len(body))+pad(body))
}

// record is one PAX record, whose length counts itself.
func record(k, v string) string {
	n := len(k) + len(v) + 3
	for {
		s := fmt.Sprintf("%d %s=%s\n", n, k, v)
		if len(s) == n {
			return s
		}
		n = len(s)
	}
}

func pad(s string) string {
	return s + strings.Repeat("\x00", (block-len(s)%block)%block)
}

func rawHeader(name string, kind byte, size int) string {
	b := make([]byte, block)
	put := func(off int, s string) { copy(b[off:], s) }
	put(0, name)
	put(100, "0000644\x00")
	put(108, "0000000\x00")
	put(116, "0000000\x00")
	put(124, fmt.Sprintf("%011o\x00", size))
	put(136, fmt.Sprintf("%011o\x00", epoch.Unix()))
	b[156] = kind
	put(257, "ustar\x0000")
	copy(b[148:156], bytes.Repeat([]byte(" "), 8))
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	put(148, fmt.Sprintf("%06o\x00 ", sum))
	return string(b)
}
