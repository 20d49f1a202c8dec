package predict

import (
	"encoding/json"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

// importPattern finds what JavaScript requires or imports by a literal name.
var importPattern = regexp.MustCompile(
	"\\brequire\\s*\\(\\s*['\"`]([^'\"`\\n]+)['\"`]\\s*\\)" +
		"|\\bimport\\s*\\(\\s*['\"`]([^'\"`\\n]+)['\"`]" +
		"|\\b(?:import|export)\\b[^'\"`;()]*?\\bfrom\\s*['\"]([^'\"\\n]+)['\"]" +
		"|(?:^|[;\\n])\\s*import\\s*['\"]([^'\"\\n]+)['\"]")

// nodeStart is what Debian's Node.js has outside of its binary, and loads at each start.
var nodeStart = []string{
	"/usr/share/nodejs/cjs-module-lexer/lexer.js", "/usr/share/nodejs/cjs-module-lexer/dist/lexer.js",
	"/usr/share/nodejs/undici/undici-fetch.js", "/usr/share/nodejs/acorn/dist/acorn.js", "/usr/share/nodejs/acorn-walk/dist/walk.js",
}

// node follows "node [options] script".
func (p *predictor) node(argv []string, dir string, depth int) {
	p.addAll(nodeStart...)
	for i := 1; i < len(argv); i++ {
		arg := argv[i]
		switch {
		case (arg == "-r" || arg == "--require" || arg == "--import") && i+1 < len(argv):
			i++
			p.module(argv[i], dir, depth)
		case strings.HasPrefix(arg, "-"):
		default:
			if !strings.HasPrefix(arg, "/") && !strings.HasPrefix(arg, ".") {
				arg = "./" + arg
			}
			p.module(arg, dir, depth)
			p.words(argv[i+1:], dir)
			return
		}
	}
	p.addAll(abs(dir, "package.json"))
}

// npm follows "npm start" and "npm run script" into package.json.
func (p *predictor) npm(argv []string, dir string, depth int) {
	file := p.view.file(abs(dir, "package.json"))
	p.add(file)
	var manifest struct {
		Scripts map[string]string `json:"scripts"`
	}
	if json.Unmarshal(p.script(file), &manifest) != nil {
		return
	}
	for _, arg := range argv[1:] {
		if text, ok := manifest.Scripts[arg]; ok {
			saved := p.env["PATH"]
			p.env["PATH"] = abs(dir, "node_modules/.bin") + ":" + saved
			p.text(text, nil, dir, depth+1)
			p.env["PATH"] = saved
			return
		}
	}
}

// module loads one JavaScript module and, in order, what it names.
func (p *predictor) module(name, dir string, depth int) {
	file := p.resolveModule(name, dir)
	if file == nil || p.loaded[file.path] || len(p.loaded) >= p.limits.Modules || depth > maxDepth {
		return
	}
	p.loaded[file.path] = true
	p.nearestManifest("/" + parentOf(file.path))
	p.add(file)
	switch path.Ext(file.path) {
	case ".node":
		p.loadFile(file)
		return
	case ".json", ".wasm":
		return
	}
	own := "/" + parentOf(file.path)
	for _, m := range importPattern.FindAllSubmatch(p.script(file), 4096) {
		for _, g := range m[1:] {
			if len(g) > 0 && len(g) <= 512 {
				p.module(string(g), own, depth+1)
			}
		}
	}
}

// nearestManifest adds the package.json that decides how a module is loaded.
func (p *predictor) nearestManifest(dir string) {
	for ; ; dir = path.Dir(dir) {
		if n := p.view.file(path.Join(dir, "package.json")); n != nil {
			p.add(n)
			p.natives(n)
			return
		}
		if dir == "/" || path.Base(dir) == "node_modules" {
			return
		}
	}
}

// natives adds the native modules among the optional dependencies of a package. Those
// for the platform are installed, and loaded by names that are put together at run time.
func (p *predictor) natives(manifest *node) {
	if p.listed[manifest.path] {
		return
	}
	p.listed[manifest.path] = true
	var m struct {
		Optional map[string]json.RawMessage `json:"optionalDependencies"`
	}
	if json.Unmarshal(p.script(manifest), &m) != nil || len(m.Optional) > maxPlugins {
		return
	}
	left := maxPlugins
	for _, name := range slices.Sorted(maps.Keys(m.Optional)) {
		for d := "/" + parentOf(manifest.path); ; d = path.Dir(d) {
			if dir := path.Join(d, "node_modules", name); p.view.dir(dir) != nil {
				if !p.listed[dir] { // many packages may name it
					p.listed[dir] = true
					p.addAll(path.Join(dir, "package.json"))
					p.loadDir(dir, nil, &left, 0)
				}
				break
			}
			if d == "/" {
				break
			}
		}
	}
}

// resolveModule does what require.resolve does for the common cases.
func (p *predictor) resolveModule(name, dir string) *node {
	name = strings.TrimPrefix(name, "file://")
	if strings.HasPrefix(name, "node:") || strings.Contains(name, "\x00") {
		return nil
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") || name == "." || name == ".." {
		return p.resolveFile(abs(dir, name))
	}
	for d := dir; ; d = path.Dir(d) {
		if path.Base(d) != "node_modules" {
			if modules := p.view.dir(path.Join(d, "node_modules")); modules != nil {
				if n := p.resolvePackage("/"+modules.path, name); n != nil {
					return n
				}
			}
		}
		if d == "/" {
			break
		}
	}
	// NODE_PATH, and where Debian's Node.js looks as well.
	for _, d := range append(strings.Split(p.env["NODE_PATH"], ":"), "/usr/share/nodejs", "/usr/lib/nodejs") {
		if modules := p.view.dir(d); modules != nil && d != "" {
			if n := p.resolvePackage("/"+modules.path, name); n != nil {
				return n
			}
		}
	}
	return nil
}

// resolvePackage looks a bare name up in one node_modules.
func (p *predictor) resolvePackage(modules, name string) *node {
	parts := strings.SplitN(name, "/", 3)
	pkg, sub := parts[0], strings.Join(parts[1:], "/")
	if strings.HasPrefix(name, "@") && len(parts) > 1 {
		pkg, sub = parts[0]+"/"+parts[1], strings.Join(parts[2:], "/")
	}
	root := path.Join(modules, pkg)
	if p.view.dir(root) == nil {
		return nil
	}
	if manifest := p.view.file(path.Join(root, "package.json")); manifest != nil && manifest.size < p.limits.Script {
		p.add(manifest) // a module may have a nearer one
		var m struct {
			Exports json.RawMessage `json:"exports"`
		}
		if json.Unmarshal(p.script(manifest), &m) == nil && len(m.Exports) > 0 {
			if target := exported(m.Exports, sub); target != "" {
				if n := p.view.file(path.Join(root, target)); n != nil {
					return n
				}
			}
		}
	}
	return p.resolveFile(path.Join(root, sub))
}

// exported picks the target of a subpath from package.json's "exports".
func exported(raw json.RawMessage, sub string) string {
	var table map[string]json.RawMessage
	key := "."
	if sub != "" {
		key = "./" + sub
	}
	if json.Unmarshal(raw, &table) == nil {
		if v, ok := table[key]; ok {
			return condition(v, 0)
		}
		if _, ok := table["."]; ok || sub != "" {
			return ""
		}
	}
	return condition(raw, 0)
}

func condition(raw json.RawMessage, depth int) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) == nil && len(list) > 0 && depth < 8 {
		return condition(list[0], depth+1)
	}
	var table map[string]json.RawMessage
	if depth >= 8 || json.Unmarshal(raw, &table) != nil {
		return ""
	}
	for _, c := range []string{"module-sync", "node", "require", "import", "default"} {
		if v, ok := table[c]; ok {
			if s := condition(v, depth+1); s != "" {
				return s
			}
		}
	}
	return ""
}

// resolveFile tries a path as a file, with extensions, and as a directory.
func (p *predictor) resolveFile(name string) *node {
	if n := p.view.file(name); n != nil {
		return n
	}
	if n := p.withExtension(name); n != nil {
		return n
	}
	dir := p.view.dir(name)
	if dir == nil {
		return nil
	}
	if dir.has("package.json") {
		var m struct {
			Main string `json:"main"`
		}
		manifest := p.view.file(path.Join(name, "package.json"))
		if json.Unmarshal(p.script(manifest), &m) == nil && m.Main != "" {
			target := path.Join(name, m.Main)
			if n := p.view.file(target); n != nil {
				return n
			}
			if n := p.withExtension(target); n != nil {
				return n
			}
			if n := p.withExtension(path.Join(target, "index")); n != nil {
				return n
			}
		}
	}
	return p.withExtension(path.Join(name, "index"))
}

func (p *predictor) withExtension(name string) *node {
	for _, ext := range []string{".js", ".json", ".node", ".cjs", ".mjs"} {
		if n := p.view.file(name + ext); n != nil {
			return n
		}
	}
	return nil
}
