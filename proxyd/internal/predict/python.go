package predict

import (
	"bytes"
	"encoding/binary"
	"path"
	"regexp"
	"strings"
)

// pythonStart is what every Python interpreter imports before its first line
// of user code, in its order.
var pythonStart = []string{
	"encodings", "codecs", "encodings.aliases", "encodings.utf_8", "io", "abc", "site", "os", "stat", "_collections_abc",
	"posixpath", "genericpath", "_sitebuiltins", "sitecustomize", "usercustomize", "runpy", "importlib", "importlib._bootstrap",
	"importlib._bootstrap_external", "warnings", "importlib.machinery", "importlib.abc", "typing", "collections", "types",
	"operator", "keyword", "reprlib", "functools", "contextlib", "re", "enum", "zipimport",
}

// pythonImport is an import statement.
var pythonImport = regexp.MustCompile(`^(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+\(?([\w, \t*]*)|import[ \t]+([\w., \t]+))`)

// openImport is the first line of an import that goes on in the next.
var openImport = regexp.MustCompile(`^[ \t]*from[ \t]+[\w.]+[ \t]+import[ \t]*\([^)]*$`)

// lazyImport is what a function imports: needed soon, but not at once.
type lazyImport struct {
	module string
	paths  []string
	depth  int
}

// pyLazy follows what was put off.
func (p *predictor) pyLazy() {
	for len(p.lazy) > 0 {
		it := p.lazy[0]
		p.lazy = p.lazy[1:]
		p.pyModule(it.module, it.paths, it.depth)
	}
}

// pythonCall finds the other way to say it.
var pythonCall = regexp.MustCompile(`__import__\(['"]([\w.]+)['"]`)

// python follows "python [options] script", "-m module" and "-c text".
func (p *predictor) python(name string, n *node, argv []string, dir string, depth int) {
	paths := p.pythonPaths(name, n)
	p.addAll(path.Join(path.Dir(path.Dir(name)), "pyvenv.cfg"))
	var configs []*node // site reads them all, and runs what begins with import
	for _, root := range paths {
		if d := p.view.dir(root); d != nil {
			for _, c := range d.children {
				if strings.HasSuffix(c, ".pth") {
					configs = append(configs, p.view.file("/"+d.path+"/"+c))
					p.add(configs[len(configs)-1])
				}
			}
		}
	}
	for _, m := range pythonStart {
		p.pyModule(m, paths, depth+1)
	}
	defer p.pyLazy()
	for _, c := range configs {
		p.pySource(p.script(c), "", paths, depth+1)
	}
	for i := 1; i < len(argv); i++ {
		arg := argv[i]
		switch {
		case arg == "-m" && i+1 < len(argv):
			here := append([]string{dir}, paths...)
			p.pyModule(argv[i+1], here, depth+1)
			p.pyModule(argv[i+1]+".__main__", here, depth+1)
			p.pyArguments(argv[i+2:], dir, here, depth)
			return
		case arg == "-c" && i+1 < len(argv):
			p.pySource([]byte(argv[i+1]), "", append([]string{dir}, paths...), depth+1)
			return
		case strings.HasPrefix(arg, "-"):
		default:
			script := p.view.file(abs(dir, arg))
			if script == nil {
				script = p.view.file(path.Join(abs(dir, arg), "__main__.py"))
			}
			if script != nil {
				p.add(script)
				here := append([]string{"/" + parentOf(script.path)}, paths...)
				text := p.script(script)
				p.pySource(text, "", here, depth+1)
				p.entryPoints(text, here, depth)
				p.pyArguments(argv[i+1:], dir, append([]string{dir}, here...), depth)
			}
			return
		}
	}
}

// entryPointScript finds the distribution that a generated script looks up at run time.
var entryPointScript = regexp.MustCompile(`['"]([\w.-]+)==[^'"]*['"]`)

// entryPoints follows scripts that setuptools made for a distribution.
func (p *predictor) entryPoints(script []byte, paths []string, depth int) {
	m := entryPointScript.FindSubmatch(script)
	if m == nil || !bytes.Contains(script, []byte("console_scripts")) {
		return
	}
	for _, root := range paths {
		d := p.view.dir(root)
		if d == nil {
			continue
		}
		for _, c := range d.children {
			if !strings.HasPrefix(c, string(m[1])+"-") || !strings.HasSuffix(c, "-info") {
				continue
			}
			dir := "/" + d.path + "/" + c
			p.addAll(dir+"/METADATA", dir+"/PKG-INFO", dir+"/entry_points.txt")
			for line := range strings.Lines(string(p.script(p.view.file(dir + "/entry_points.txt")))) {
				if _, target, ok := strings.Cut(line, "="); ok {
					module, _, _ := strings.Cut(strings.TrimSpace(target), ":")
					p.pyModule(module, paths, depth+1)
				}
			}
		}
	}
}

// pyArguments takes words such as "app.main:app" (gunicorn, uvicorn, celery) for modules.
func (p *predictor) pyArguments(args []string, dir string, paths []string, depth int) {
	p.words(args, dir)
	for _, arg := range args {
		if module, _, _ := strings.Cut(arg, ":"); module != "" && !strings.HasPrefix(module, "-") && !strings.Contains(module, "/") {
			p.pyModule(module, paths, depth+1)
		}
	}
}

// pythonPaths is sys.path of an interpreter: the standard library next to the
// binary, and the site packages of its virtual environment and its prefix.
func (p *predictor) pythonPaths(name string, n *node) []string {
	var libs, sites []string
	if v := p.env["PYTHONPATH"]; v != "" {
		libs = append(libs, strings.Split(v, ":")...)
	}
	prefixes := []string{path.Dir(path.Dir(name)), "/" + parentOf(parentOf(n.path)), "/usr/local", "/usr"}
	version := strings.TrimPrefix(path.Base(n.path), "python")
	known := make(map[string]bool)
	for _, prefix := range prefixes {
		lib := p.view.dir(path.Join(prefix, "lib"))
		if lib == nil || known[lib.path] {
			continue
		}
		known[lib.path] = true
		for _, c := range lib.children {
			v, ok := strings.CutPrefix(c, "python")
			if !ok || v == "" || (strings.Contains(version, ".") && v != version && v != "3") {
				continue
			}
			dir := "/" + lib.path + "/" + c
			if d := p.view.dir(dir); d != nil && d.has("encodings") {
				libs = append(libs, dir, dir+"/lib-dynload")
			}
			sites = append(sites, dir+"/site-packages", dir+"/dist-packages")
		}
	}
	return append(libs, sites...)
}

// pyModule loads one dotted module: its packages first, then what it imports.
func (p *predictor) pyModule(module string, paths []string, depth int) {
	if depth > maxDepth || len(module) > 512 || module == "" {
		return
	}
	parts := strings.Split(module, ".")
	for _, root := range paths {
		dir := p.view.dir(root)
		if dir == nil {
			continue
		}
		found := false
		for i, part := range parts {
			next, file := p.pyStep(dir, part)
			if source := p.view.lookup(file); file != "" && source != nil {
				found = true
				p.pyLoad(file, source, strings.Join(parts[:i], "."), next != nil, part, paths, depth)
			}
			if dir = next; dir == nil {
				break
			}
			found = true
		}
		if found {
			return
		}
	}
}

// pyStep finds name in a package directory: the directory if it is a package,
// and the path of the file that is executed for it, or "".
func (p *predictor) pyStep(dir *node, name string) (pkg *node, file string) {
	base := "/" + dir.path + "/" + name
	if name == "" {
		return nil, ""
	}
	if dir.has(name) {
		if pkg = p.view.dir(base); pkg != nil {
			return pkg, base + "/__init__.py"
		}
	}
	if dir.has(name + ".py") {
		return nil, base + ".py"
	}
	for _, c := range dir.children {
		if strings.HasPrefix(c, name+".") && strings.HasSuffix(c, ".so") {
			return nil, "/" + dir.path + "/" + c
		}
	}
	return nil, ""
}

// pyLoad adds a module's code, compiled if there is any, and follows its imports.
func (p *predictor) pyLoad(file string, source *node, parent string, isPackage bool, name string, paths []string, depth int) {
	if p.loaded[source.path] || len(p.loaded) >= p.limits.Modules {
		return
	}
	p.loaded[source.path] = true
	if strings.HasSuffix(source.path, ".so") {
		p.loadFile(source)
		return
	}
	code := p.compiled(file)
	p.add(code)
	if !p.fresh(code, source) {
		p.add(source)
	}
	context := parent
	if isPackage {
		context = strings.TrimPrefix(parent+"."+name, ".")
	}
	switch strings.TrimPrefix(parent+"."+name, ".") {
	case "pkg_resources":
		for _, vendored := range []string{"extern", "_vendor"} { // found by an importer of its own
			p.addDir(path.Join(path.Dir(file), vendored), 1<<20)
		}
		p.distributions(paths)
	case "importlib.metadata":
		p.distributions(paths)
	case "pytz": // opens all time zones, its own or those of the system, to see which there are
		p.addDir(path.Join(path.Dir(file), "zoneinfo"), 256<<10)
		p.addDir("/usr/share/zoneinfo", 256<<10)
	case "platform":
		p.addAll("/usr/bin/uname") // asks it for the processor
	case "sysconfig":
		if dir := p.view.dir(path.Dir(file)); dir != nil {
			for _, c := range dir.children {
				if data, ok := strings.CutSuffix(c, ".py"); ok && strings.HasPrefix(data, "_sysconfigdata") {
					p.pyModule(data, paths, depth+1)
				}
			}
		}
	}
	text := p.script(source)
	p.pySource(text, context, paths, depth+1)
	p.pyNames(text, context, paths, depth+1)
}

// distributions adds what says which distributions are installed, and what they offer.
func (p *predictor) distributions(paths []string) {
	for _, root := range paths {
		d := p.view.dir(root)
		if d == nil || p.listed[d.path] {
			continue
		}
		p.listed[d.path] = true
		for _, c := range d.children {
			if strings.HasSuffix(c, ".egg-info") || strings.HasSuffix(c, ".dist-info") {
				info := "/" + d.path + "/" + c
				p.addAll(info, info+"/PKG-INFO", info+"/METADATA", info+"/entry_points.txt", info+"/requires.txt")
			}
		}
	}
}

// compiled finds the .pyc that Python reads in place of a source file, which may be a
// link to somewhere else.
func (p *predictor) compiled(file string) *node {
	dir := p.view.dir(path.Dir(file) + "/__pycache__")
	if dir == nil {
		return nil
	}
	stem := strings.TrimSuffix(path.Base(file), ".py") + ".cpython-"
	for _, c := range dir.children {
		if v, ok := strings.CutPrefix(c, stem); ok && strings.Count(v, ".") == 1 {
			return p.view.file("/" + dir.path + "/" + c)
		}
	}
	return nil
}

// fresh tells whether Python runs compiled code without a look into its source:
// if it is not checked, or names the time and the size of the source (PEP 552).
func (p *predictor) fresh(code, source *node) bool {
	var hdr [16]byte
	if code == nil {
		return false
	}
	if n, _ := p.readAt(code, hdr[:], 0); n < len(hdr) {
		return false
	}
	switch binary.LittleEndian.Uint32(hdr[4:]) {
	case 0:
		return binary.LittleEndian.Uint32(hdr[8:]) == uint32(source.mtime) &&
			binary.LittleEndian.Uint32(hdr[12:]) == uint32(source.size)
	case 1:
		return true // by hash, unchecked
	default:
		return false
	}
}

// pySource follows the import statements of a source text whose relative
// imports start at the package pkg: those of the module at once, those of functions
// later, and not what is for type checkers only.
func (p *predictor) pySource(text []byte, pkg string, paths []string, depth int) {
	if depth > maxDepth {
		return
	}
	for _, m := range pythonCall.FindAllSubmatch(text, 64) {
		p.pyModule(string(m[1]), paths, depth)
	}
	const outside = -1
	block, typing := outside, false // indentation of the function or condition around, and which
	var open []byte                 // an import in parentheses, as one line
	for line := range bytes.Lines(text) {
		if open != nil || openImport.Match(line) {
			line, _, _ = bytes.Cut(line, []byte("#"))
			open = append(append(open, bytes.TrimRight(line, " \t\r\n")...), ' ')
			if !bytes.ContainsRune(line, ')') && len(open) < 64<<10 {
				continue
			}
			line, open = open, nil
		}
		code := bytes.TrimLeft(line, " \t")
		if len(bytes.TrimSpace(code)) == 0 || code[0] == '#' {
			continue
		}
		indent := len(line) - len(code)
		if indent <= block {
			block = outside
		}
		if block == outside {
			typing = bytes.HasPrefix(code, []byte("if TYPE_CHECKING")) || bytes.HasPrefix(code, []byte("if typing.TYPE_CHECKING"))
			if typing || bytes.HasPrefix(code, []byte("def ")) || bytes.HasPrefix(code, []byte("async def ")) {
				block = indent
				continue
			}
		}
		if block != outside && typing {
			continue
		}
		for _, module := range imported(code, pkg) {
			if block == outside {
				p.pyModule(module, paths, depth)
			} else if len(p.lazy) < p.limits.Modules {
				p.lazy = append(p.lazy, lazyImport{module, paths, depth})
			}
		}
	}
}

// imported lists the modules that a line of a module of package pkg imports, if it does.
// Names that turn out to be none do not matter.
func imported(line []byte, pkg string) (modules []string) {
	m := pythonImport.FindSubmatch(line)
	switch {
	case m == nil:
		return nil
	case len(m[3]) > 0:
		for name := range strings.SplitSeq(string(m[3]), ",") {
			if f := strings.Fields(name); len(f) > 0 {
				modules = append(modules, f[0])
			}
		}
		return modules
	}
	from := string(m[1])
	if rel := strings.TrimLeft(from, "."); rel != from {
		base := pkg
		for range len(from) - len(rel) - 1 {
			base, _, _ = cutLast(base)
		}
		from = strings.Trim(base+"."+rel, ".")
	}
	modules = append(modules, from)
	for name := range strings.SplitSeq(string(m[2]), ",") {
		if f := strings.Fields(name); len(f) > 0 && f[0] != "*" && from != "" {
			modules = append(modules, from+"."+f[0])
		}
	}
	return modules
}

// pythonName finds names of modules in strings: frameworks load their parts by them.
var pythonName = regexp.MustCompile(`["']([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)["']`)

// pyNames follows the names of modules that a package has in strings of its own modules.
func (p *predictor) pyNames(text []byte, pkg string, paths []string, depth int) {
	top, _, _ := strings.Cut(pkg, ".")
	if top == "" {
		return
	}
	for _, m := range pythonName.FindAllSubmatch(text, 512) {
		if bytes.HasPrefix(m[1], []byte(top+".")) {
			p.pyModule(string(m[1]), paths, depth)
		}
	}
}

func cutLast(module string) (before, after string, found bool) {
	if i := strings.LastIndexByte(module, '.'); i >= 0 {
		return module[:i], module[i+1:], true
	}
	return "", module, false
}
