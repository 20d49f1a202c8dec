package predict

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"io"
	"path"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// javaStart is what every JVM reads below its home, in its order; of older ones, below jre.
var javaStart = []string{
	"lib/libjli.so", "lib/jvm.cfg", "lib/server/libjvm.so", "lib/libjimage.so", "lib/modules", "lib/libjava.so", "lib/server/classes.jsa",
	"lib/rt.jar", "lib/libverify.so", "lib/libjsvml.so", "lib/libnio.so", "lib/libnet.so", "lib/libzip.so", "conf/security/java.security",
	"lib/security/java.security", "lib/tzdb.dat", "conf/logging.properties", "lib/libmanagement.so", "lib/libmanagement_ext.so", "lib/libextnet.so",
	"conf/net.properties",
}

// startModules is how much of the modules of a JDK a start reads from, behind their
// index: the build puts there what programs load first (jlink --order-resources).
const startModules = 13 << 20

// java follows "java [options] -jar file | class".
func (p *predictor) java(n *node, argv []string, dir string) {
	p.jvm("/" + parentOf(parentOf(n.path)))
	for i := 1; i < len(argv); i++ {
		switch arg := argv[i]; {
		case (arg == "-cp" || arg == "-classpath" || arg == "--class-path" || arg == "-p" || arg == "--module-path") && i+1 < len(argv):
			i++
			for entry := range strings.SplitSeq(argv[i], ":") {
				name, all := strings.CutSuffix(abs(dir, entry), "/*")
				if p.jar(p.view.file(name)); all || p.view.dir(name) != nil {
					p.jars(name)
				}
			}
		case arg == "-jar" && i+1 < len(argv):
			name := abs(dir, argv[i+1])
			p.jar(p.view.file(name))
			p.jars(path.Join(path.Dir(name), "lib"))
			p.words(argv[i+2:], dir)
			return
		case strings.HasPrefix(arg, "@"):
			p.add(p.view.file(abs(dir, arg[1:])))
		case strings.HasPrefix(arg, "-javaagent:"):
			name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-javaagent:"), "=")
			p.jar(p.view.file(abs(dir, name)))
		default:
			p.words(argv[i:i+1], dir)
		}
	}
}

// javaHome follows a JVM that some script starts by a name that is put together, and adds
// the libraries beside the script.
func (p *predictor) javaHome() {
	home := p.env["JAVA_HOME"]
	n := p.view.file(home + "/bin/java")
	if home == "" || n == nil {
		return
	}
	p.loadFile(n)
	p.add(n) // unless it is there
	p.jvm(home)
	for _, d := range p.own {
		p.jars("/" + d + "/bin")
		p.jars("/" + d + "/lib")
	}
}

// jvm adds what a JVM with this home reads at its start.
func (p *predictor) jvm(home string) {
	d := p.view.dir(home)
	if d == nil || p.loaded["jvm "+d.path] {
		return
	}
	p.loaded["jvm "+d.path] = true
	for _, name := range javaStart {
		n := p.view.file(home + "/" + name)
		if n == nil {
			n = p.view.file(home + "/jre/" + name)
		}
		switch {
		case n == nil:
		case path.Ext(name) == ".so":
			p.loadFile(n)
		case name == "lib/modules":
			p.modules(n)
		default:
			p.add(n)
		}
	}
}

// modules adds the index of the modules of a JDK, and what is behind it; the others are
// looked up here and there. The format is that of jimage: 7 words, of which the fifth is
// the number of entries in two tables of words, the sixth and the seventh the sizes of two
// areas.
func (p *predictor) modules(n *node) {
	const magic = 0xCAFEDADA
	var hdr [28]byte
	got, _ := p.readAt(n, hdr[:], 0)
	if p.seen[n.object] {
		return
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if order.Uint32(hdr[:]) != magic {
		order = binary.BigEndian
	}
	if got < len(hdr) || order.Uint32(hdr[:]) != magic {
		p.add(n)
		return
	}
	index := int64(len(hdr)) + 8*int64(order.Uint32(hdr[16:])) + int64(order.Uint32(hdr[20:])) + int64(order.Uint32(hdr[24:]))
	pieces := uint32((n.size + toc.PieceSize - 1) / toc.PieceSize)
	first := uint32(min((index+startModules)/toc.PieceSize+1, int64(pieces)))
	p.seen[n.object] = true
	p.order = append(p.order, Item{Object: uint32(n.object), Pieces: first})
	if first < pieces {
		p.tables = append(p.tables, Item{Object: uint32(n.object), First: first, Pieces: pieces - first})
	}
}

// jar adds an archive, its directory first, which is at its end, and those that its
// manifest names.
func (p *predictor) jar(n *node) {
	if n == nil || p.loaded["jar "+n.path] || len(p.loaded) >= p.limits.Modules {
		return
	}
	p.loaded["jar "+n.path] = true
	if n.size <= toc.PieceSize || p.seen[n.object] {
		p.add(n)
	} else {
		p.seen[n.object] = true
		last := uint32((n.size - 1) / toc.PieceSize)
		p.order = append(p.order, Item{Object: uint32(n.object), First: last, Pieces: 1}, Item{Object: uint32(n.object), Pieces: last})
	}
	for _, name := range classPath(p.manifest(n)) {
		p.jar(p.view.file(abs(parentOf(n.path), name)))
	}
}

// Limits of an archive whose manifest is read.
const (
	maxDirectory = 1 << 20 // bytes of its directory
	maxManifest  = 256 << 10
)

// manifest returns META-INF/MANIFEST.MF of an archive, if its directory is small.
func (p *predictor) manifest(n *node) []byte {
	tail := make([]byte, min(n.size, 1<<16))
	got, _ := p.readAt(n, tail, n.size-int64(len(tail)))
	tail = tail[:got]
	at := bytes.LastIndex(tail, []byte("PK\x05\x06"))
	if at < 0 || got-at < 22 {
		return nil
	}
	// What archive/zip allocates for is bounded here, and by the fields being small: with
	// 64 bits they would be anything (archive/zip: readDirectoryEnd).
	end := tail[at:]
	entries, size, offset := binary.LittleEndian.Uint16(end[10:]), binary.LittleEndian.Uint32(end[12:]), binary.LittleEndian.Uint32(end[16:])
	if entries == 0xffff || size == 0xffff || size > maxDirectory || offset == 0xffffffff || 22+int(binary.LittleEndian.Uint16(end[20:])) > len(end) {
		return nil
	}
	z, err := zip.NewReader(nodeReader{p, n}, n.size)
	if err != nil {
		return nil
	}
	for _, f := range z.File {
		if f.Name != "META-INF/MANIFEST.MF" {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil
		}
		b, _ := io.ReadAll(io.LimitReader(r, maxManifest))
		_ = r.Close()
		return b
	}
	return nil
}

// nodeReader reads a node within the budget.
type nodeReader struct {
	p *predictor
	n *node
}

// ReadAt implements io.ReaderAt.
func (r nodeReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := r.p.readAt(r.n, b, off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}

// classPath returns what the Class-Path of a manifest names. Lines that begin with a
// space go on with the one before.
func classPath(manifest []byte) []string {
	text := strings.NewReplacer("\r\n ", "", "\n ", "").Replace(string(manifest))
	for line := range strings.Lines(text) {
		if names, ok := strings.CutPrefix(line, "Class-Path:"); ok {
			return strings.Fields(names)
		}
	}
	return nil
}

// jars adds the archives in a directory.
func (p *predictor) jars(dir string) {
	d := p.view.dir(dir)
	if d == nil {
		return
	}
	for _, name := range d.children {
		if strings.HasSuffix(name, ".jar") {
			p.jar(p.view.file(dir + "/" + name))
		}
	}
}
