package predict

import (
	"context"
	"errors"
	"io"
	"path"
	"regexp"
	"sort"
	"strings"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// NoObject is Entry.Object of everything that is not a non-empty regular file.
const NoObject = -1

// Entry is one name of the image's merged tree.
type Entry struct {
	// Path without the leading slash; "" is the root.
	Path string
	Type toc.Type
	// Mode holds the permission bits.
	Mode uint32
	// Link is the target of a symlink.
	Link string
	// Object is the index in the image's object list, or NoObject.
	Object int
	Size   int64
	// Mtime in seconds since 1970: compiled Python code names that of its source.
	Mtime int64
}

// Config is what of an image's config matters for a start.
type Config struct {
	Entrypoint, Cmd, Env []string
	WorkingDir           string
}

// Objects reads the contents of the image's objects.
type Objects interface {
	// ReadObjectAt fills p from offset off of an object, with the rules of io.ReaderAt.
	ReadObjectAt(ctx context.Context, object uint32, p []byte, off int64) (int, error)
}

// Limits bounds the work that one image can cause.
type Limits struct {
	Bytes    int64 // read from objects in total
	Script   int64 // read from one script, module or configuration file
	Programs int   // started by scripts and arguments
	Modules  int   // imported by Node or Python programs
}

// DefaultLimits suits images of up to some hundred thousand files: a few
// seconds of work at the very worst.
func DefaultLimits() Limits {
	return Limits{Bytes: 256 << 20, Script: 1 << 20, Programs: 96, Modules: 20000}
}

// maxDepth bounds the recursion of "#!" chains, scripts and imports. The kernel
// allows 5 levels of the first; imports of real programs nest some hundred deep.
const maxDepth = 256

// Item is an object, or a run of its pieces.
type Item struct {
	Object uint32
	// First piece, and how many; 0 are all that follow.
	First, Pieces uint32
}

// Order returns the objects of the tree's regular files, each once, in whole or in
// parts, in the order in which they should be sent; the first hot items a start is
// expected to read. It fails only if ctx ends.
func Order(ctx context.Context, entries []Entry, cfg Config, objects Objects, limits Limits) (order []Item, hot int, err error) {
	p := &predictor{
		ctx:     ctx,
		view:    newView(entries),
		objects: objects,
		limits:  limits,
		left:    limits.Bytes,
		cfg:     cfg,
		env:     environment(cfg.Env),
		seen:    make(map[int]bool, len(entries)),
		ran:     make(map[string]bool),
		loaded:  make(map[string]bool),
		listed:  make(map[string]bool),
	}
	p.start()
	hot = len(p.order)
	p.rest()
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	return p.order, hot, nil
}

// predictor is the state of one Order.
type predictor struct {
	ctx     context.Context //nolint:containedctx // of the one call of Order that this value lives for
	view    *view
	objects Objects
	limits  Limits
	left    int64 // of limits.Bytes
	walked  int   // names in directories that were gone through
	cfg     Config
	env     map[string]string

	order    []Item
	late     []Item          // code of large libraries, which hardly any start needs much of
	tables   []Item          // large tables in ELF files, in which a start looks up little
	unloaded []Item          // what ELF files have for debuggers
	seen     map[int]bool    // objects in order
	ran      map[string]bool // programs and scripts already followed, by path and arguments
	programs int
	loaded   map[string]bool // modules already followed
	listed   map[string]bool // directories whose distributions, and manifests and packages whose native modules, are added
	lazy     []lazyImport    // of Python: what functions import
	own      []string        // directories that belong to the programs
	names    []string        // base names of the programs
	libDirs  []string        // of /etc/ld.so.conf, nil until read
}

// start follows the program of the config.
func (p *predictor) start() {
	// runc looks the user up before it starts anything.
	p.addAll("/etc/passwd", "/etc/group")
	argv := append(append([]string{}, p.cfg.Entrypoint...), p.cfg.Cmd...)
	p.early()
	p.command(argv, p.workDir(), 0)
	p.javaHome()
	p.plugins()
	// What C libraries load at run time, for names and to end threads.
	for _, lib := range []string{"libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"} {
		if n := p.findLibrary(lib, p.searchDirs(nil, nil, 0), 0); n != nil {
			p.add(n)
		}
	}
	p.addAll("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt",
		"/usr/lib/locale/locale-archive", "/etc/services", "/etc/protocols", "/etc/mime.types", "/etc/profile", "/etc/shadow")
	left := maxServed
	for _, root := range webRoots {
		p.serve("/"+root, &left)
	}
	p.order = append(p.order, p.late...)
}

// maxServed bounds the files that are taken for the first to be served.
const maxServed = 64

// serve adds small files of a web root, those in its directories last.
func (p *predictor) serve(root string, left *int) {
	d := p.list(root)
	if d == nil || strings.Count(root, "/") > 8 {
		return
	}
	var dirs []string
	for _, name := range d.children {
		child := path.Join(root, name)
		if p.view.dir(child) != nil {
			dirs = append(dirs, child)
		} else if n := p.view.file(child); n != nil && n.size <= 64<<10 && *left > 0 {
			*left--
			p.add(n)
		}
	}
	for _, dir := range dirs {
		p.serve(dir, left)
	}
}

// early adds small files that C libraries and runtimes read at their start,
// whatever the program is. Each would cost a round trip.
func (p *predictor) early() {
	p.addAll("/etc/ld.so.preload", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf",
		"/etc/gai.conf", "/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo/UTC", "/etc/environment", "/etc/os-release",
		"/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf")
	for _, dir := range []string{"/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8"} {
		p.addDir(dir, 1<<20)
	}
	for _, dir := range []string{"x86_64-linux-gnu", "aarch64-linux-gnu", "../lib64"} {
		p.addAll(path.Join("/usr/lib", dir, "gconv/gconv-modules.cache"))
	}
}

// maxPlugins bounds the libraries that plugins follows.
const maxPlugins = 128

// moduleName is how configuration files name the shared objects that a program loads.
var moduleName = regexp.MustCompile(`[\w.+-]+\.so\b`)

// plugins adds the shared objects in the directories of the programs, such as the
// modules of nginx, with their libraries: those that configuration files name, or all of
// them if none is named. The scripts of official images' entrypoints are added too.
func (p *predictor) plugins() {
	p.addDir("/docker-entrypoint.d", 1<<20)
	left := maxPlugins
	for _, name := range p.names {
		if isVersionOf("python", name) || isVersionOf("ruby", name) {
			continue // their modules are found by their imports
		}
		named := make(map[string]bool)
		p.configured("/etc/"+name, named, 0)
		p.addDir("/etc/"+name, 256<<10)
		for _, lib := range []string{"/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib"} {
			p.loadDir(path.Join(lib, name), named, &left, 0)
		}
	}
	for _, dir := range p.own {
		p.addDir("/etc/"+path.Base(dir), 256<<10)
	}
}

// configured notes the shared objects that the configuration in a directory names. What
// is merely available there is not in use.
func (p *predictor) configured(dir string, named map[string]bool, depth int) {
	d := p.list(dir)
	if d == nil || depth > 4 || strings.HasSuffix(dir, "-available") {
		return
	}
	for _, name := range d.children {
		if len(named) >= 1024 {
			return
		}
		child := dir + "/" + name
		p.configured(child, named, depth+1)
		if n := p.view.file(child); n != nil && n.size <= 256<<10 {
			for _, m := range moduleName.FindAll(p.script(n), 256) {
				named[string(m)] = true
			}
		}
	}
}

// loadDir loads the shared objects of a directory and of those below it: the named ones,
// or all if none are.
func (p *predictor) loadDir(dir string, named map[string]bool, left *int, depth int) {
	d := p.list(dir)
	if d == nil || depth > 3 {
		return
	}
	for _, name := range d.children {
		child := path.Join(dir, name)
		if p.view.dir(child) != nil {
			p.loadDir(child, named, left, depth+1)
			continue
		}
		n := p.view.file(child)
		if n == nil || *left == 0 || !strings.HasSuffix(name, ".so") && !strings.HasSuffix(name, ".node") || len(named) > 0 && !named[name] {
			continue
		}
		*left--
		p.loadFile(n)
	}
}

// maxWalked bounds the names in directories that are gone through. Symlinks to a
// directory above make any number of them.
const maxWalked = 1 << 20

// list returns a directory that is to be gone through, or nil.
func (p *predictor) list(dir string) *node {
	d := p.view.dir(dir)
	if d == nil || p.walked >= maxWalked || p.ctx.Err() != nil {
		return nil
	}
	p.walked += 1 + len(d.children)
	return d
}

// addDir adds the files of a directory and those below it, if all are small.
func (p *predictor) addDir(dir string, limit int64) {
	d := p.list(dir)
	if d == nil {
		return
	}
	for _, name := range d.children {
		child := dir + "/" + name
		if n := p.view.file(child); n != nil && n.size <= limit {
			p.add(n)
		} else if p.view.dir(child) != nil && strings.Count(child, "/") < 16 {
			p.addDir(child, limit)
		}
	}
}

func (p *predictor) workDir() string {
	return path.Clean("/" + p.cfg.WorkingDir)
}

// add appends the object of a node, if it has one and it is new.
func (p *predictor) add(n *node) {
	if n == nil || n.object < 0 || p.seen[n.object] {
		return
	}
	p.seen[n.object] = true
	p.order = append(p.order, Item{Object: uint32(n.object)})
}

func (p *predictor) addAll(names ...string) {
	for _, name := range names {
		p.add(p.view.lookup(name))
	}
}

// errBudget ends reading when the image has had its share.
var errBudget = errors.New("read budget spent")

// readAt reads from a node's object within the budget.
func (p *predictor) readAt(n *node, b []byte, off int64) (int, error) {
	if n == nil || n.object < 0 || off < 0 || off >= n.size {
		return 0, io.EOF
	}
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	if int64(len(b)) > n.size-off {
		b = b[:n.size-off]
	}
	if p.left -= int64(len(b)); p.left < 0 {
		return 0, errBudget
	}
	return p.objects.ReadObjectAt(p.ctx, uint32(n.object), b, off)
}

// readFile returns the beginning of a node's content, at most max bytes.
func (p *predictor) readFile(n *node, limit int64) []byte {
	if n == nil || n.object < 0 || n.size <= 0 {
		return nil
	}
	b := make([]byte, min(n.size, limit, max(p.left, 0)))
	got, err := p.readAt(n, b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	return b[:got]
}

// script reads a text file as far as the limit for one of them goes.
func (p *predictor) script(n *node) []byte { return p.readFile(n, p.limits.Script) }

func environment(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	if m["PATH"] == "" {
		m["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return m
}

// The classes in which files are sent that nothing predicted.
const (
	classWork = iota // below the working directory, or served from the usual places
	classOwn         // directories of the programs
	classRest
	classCold // hardly ever opened
)

// rest appends everything that the start did not reach: by class, then small
// before large so that most files arrive early, then by name, because
// neighbours compress well together.
func (p *predictor) rest() {
	type item struct {
		n      *node
		class  int
		bucket int
	}
	work := strings.TrimPrefix(p.workDir(), "/")
	own := p.ownPrefixes()
	var items []item
	for _, n := range p.view.files {
		if p.seen[n.object] {
			continue
		}
		it := item{n: n, class: classRest}
		switch {
		case cold(n.path):
			it.class = classCold
		case work != "" && strings.HasPrefix(n.path, work+"/"), hasPrefix(n.path, webRoots):
			it.class = classWork
		case hasPrefix(n.path, own):
			it.class = classOwn
		}
		switch {
		case n.size > 4<<20:
			it.bucket = 2
		case n.size > 256<<10:
			it.bucket = 1
		}
		items = append(items, it)
	}
	sort.SliceStable(items, func(i, j int) bool {
		a, b := items[i], items[j]
		if a.class != b.class {
			return a.class < b.class
		}
		if a.bucket != b.bucket {
			return a.bucket < b.bucket
		}
		return a.n.path < b.n.path
	})
	first := sort.Search(len(items), func(i int) bool { return items[i].class >= classRest })
	for _, it := range items[:first] {
		p.add(it.n)
	}
	p.order = append(p.order, p.tables...)
	for _, it := range items[first:] {
		p.add(it.n)
	}
	p.order = append(p.order, p.unloaded...)
}

// ownPrefixes are the directories that belong to the programs by convention.
func (p *predictor) ownPrefixes() []string {
	own := make([]string, 0, len(p.own)+6*len(p.names))
	// What an image puts in front of the usual PATH is what it is for.
	for dir := range strings.SplitSeq(p.env["PATH"], ":") {
		dir = strings.TrimSuffix(path.Clean("/"+dir), "/bin")
		switch dir {
		case "/", "", "/usr", "/usr/local", "/sbin", "/usr/sbin", "/usr/local/sbin", "/usr/games":
		default:
			own = append(own, strings.TrimPrefix(dir, "/")+"/")
		}
	}
	for _, dir := range p.own {
		own = append(own, strings.Trim(dir, "/")+"/")
	}
	for _, name := range p.names {
		own = append(own, "etc/"+name, "usr/share/"+name+"/", "usr/lib/"+name+"/", "usr/libexec/"+name,
			"var/lib/"+name+"/", "usr/local/lib/"+name+"/", "usr/local/share/"+name+"/", "opt/"+name+"/")
	}
	return own
}

func hasPrefix(name string, prefixes []string) bool {
	for _, pre := range prefixes {
		if strings.HasPrefix(name, pre) {
			return true
		}
	}
	return false
}

var (
	coldDirs = map[string]bool{
		"doc": true, "docs": true, "man": true, "info": true, "help": true, "gtk-doc": true, "locale": true,
		"i18n": true, "include": true, "test": true, "tests": true, "__tests__": true, "testdata": true,
		"examples": true, "example": true, "samples": true, "pkgconfig": true, "cmake": true, "lintian": true,
		"bash-completion": true, "zsh": true, "fish": true, "licenses": true, "benchmark": true, "benchmarks": true,
	}
	coldSuffixes = []string{
		".a", ".la", ".h", ".hpp", ".md", ".map", ".ts", ".tsx", ".flow", ".rst", ".html", ".pyi", ".gz", ".1", ".3",
		".8", ".c", ".cc", ".markdown", ".coffee", ".pc", ".mo", ".po", ".pdf",
	}
	webRoots     = []string{"var/www/", "srv/", "usr/share/nginx/html/", "usr/local/apache2/htdocs/"}
	coldPrefixes = []string{"var/lib/dpkg/", "var/lib/apt/", "lib/apk/", "var/cache/", "usr/share/perl", "boot/", "var/log/"}
)

// cold tells whether a running program hardly ever opens a file of this name.
func cold(name string) bool {
	if hasPrefix(name, coldPrefixes) {
		return true
	}
	dir := path.Dir(name)
	for part := range strings.SplitSeq(dir, "/") {
		if coldDirs[part] {
			return true
		}
	}
	base := path.Base(name)
	for _, suffix := range coldSuffixes {
		if strings.HasSuffix(base, suffix) {
			// What is served from a web root is meant to be read.
			return suffix != ".html" || strings.Contains(dir, "node_modules")
		}
	}
	upper := strings.ToUpper(base)
	return strings.HasPrefix(upper, "LICENSE") || strings.HasPrefix(upper, "CHANGELOG") ||
		strings.HasPrefix(upper, "README") || upper == "COPYRIGHT"
}
