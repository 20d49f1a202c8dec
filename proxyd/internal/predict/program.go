package predict

import (
	"bytes"
	"path"
	"strings"
)

// command follows a command line as execve would: program, "#!" chain, ELF
// libraries; then what the program does with its arguments.
func (p *predictor) command(argv []string, dir string, depth int) {
	if len(argv) == 0 || depth > maxDepth || p.ctx.Err() != nil {
		return
	}
	name, n := p.program(argv[0], dir)
	if n == nil {
		return
	}
	key := name + "\x00" + strings.Join(argv[1:], "\x00")
	if p.ran[key] || p.programs >= p.limits.Programs || len(key) > 1<<16 {
		return
	}
	p.ran[key] = true
	p.programs++
	p.execute(name, n, argv, dir, depth)
}

// program finds an executable as execvp does, and returns the name under which
// it was found beside what the name leads to.
func (p *predictor) program(word, dir string) (string, *node) {
	if strings.Contains(word, "/") {
		name := abs(dir, word)
		return name, p.view.file(name)
	}
	if word == "" {
		return "", nil
	}
	for d := range strings.SplitSeq(p.env["PATH"], ":") {
		if name := abs(dir, path.Join(d, word)); d != "" {
			if n := p.view.file(name); n != nil && n.mode&0o111 != 0 {
				return name, n
			}
		}
	}
	return "", nil
}

func (p *predictor) execute(name string, n *node, argv []string, dir string, depth int) {
	p.remember(name, n)
	head := p.readFile(n, 256)
	if line, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		p.add(n)
		line, _, _ = bytes.Cut(line, []byte("\n"))
		interp := strings.Fields(string(line))
		if len(interp) > 2 { // the kernel passes the rest as one argument; env -S splits it again
			interp = append(interp[:1:1], interp[1:]...)
		}
		if len(interp) > 0 {
			p.command(append(append(interp, name), argv[1:]...), dir, depth+1)
		}
		return
	}
	if info, err := p.parse(n); err == nil {
		p.load(n, info)
	} else {
		p.add(n)
	}
	p.interpret(name, n, argv, dir, depth)
}

// remember notes what belongs to a program for the files that nothing else ranks.
func (p *predictor) remember(name string, n *node) {
	base := path.Base(name)
	if systemTools[base] || len(p.names) >= 16 {
		return
	}
	p.names = append(p.names, base)
	if short := strings.TrimSuffix(strings.TrimSuffix(base, "-server"), "d"); short != base && len(short) > 3 {
		p.names = append(p.names, short)
	}
	// A program in X/bin with X its own directory (a JDK, a Go tree, an app in /opt).
	dir := parentOf(n.path)
	if b := path.Base(dir); b == "bin" || b == "sbin" {
		dir = parentOf(dir)
	}
	switch dir {
	case "", "usr", "usr/local", "bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin":
	default:
		p.own = append(p.own, dir)
	}
}

// interpret follows what known programs do with their arguments; others are
// taken for wrappers (tini, gosu, env …) that may run a later word.
func (p *predictor) interpret(name string, n *node, argv []string, dir string, depth int) {
	base := path.Base(name)
	target := path.Base(n.path)
	switch {
	case shells[base] || shells[target] && !strings.Contains(target, "busybox"):
		p.shell(argv, dir, depth)
	case base == "node" || base == "nodejs":
		p.node(argv, dir, depth)
	case isVersionOf("python", base) || isVersionOf("python", target):
		p.python(name, n, argv, dir, depth)
	case isVersionOf("ruby", base) || isVersionOf("ruby", target):
		p.ruby(argv, dir, depth)
	case base == "java":
		p.java(n, argv, dir)
	case packageManagers[base]:
		p.npm(argv, dir, depth)
	case quiet[base]:
		p.words(argv[1:], dir)
	default:
		p.words(argv[1:], dir)
		p.wrapped(argv[1:], dir, depth)
	}
}

// words adds the files that arguments name, also in the form --option=file.
func (p *predictor) words(args []string, dir string) {
	for _, arg := range args {
		if _, v, ok := strings.Cut(arg, "="); ok && strings.HasPrefix(arg, "-") {
			arg = v
		}
		if strings.Contains(arg, "/") || strings.Contains(arg, ".") {
			p.add(p.view.file(abs(dir, arg)))
		}
	}
}

// wrapped runs the first argument that is a program.
func (p *predictor) wrapped(args []string, dir string, depth int) {
	for i, arg := range args {
		if strings.HasPrefix(arg, "-") || strings.Contains(arg, "=") {
			continue
		}
		if _, n := p.program(arg, dir); n != nil && n.mode&0o111 != 0 {
			p.command(args[i:], dir, depth+1)
			return
		}
		if i >= 8 {
			return
		}
	}
}

// isVersionOf tells whether a program is an interpreter, like python3.11 of python.
func isVersionOf(interpreter, base string) bool {
	v, ok := strings.CutPrefix(base, interpreter)
	return ok && strings.Trim(v, "0123456789.") == ""
}

var (
	shells          = map[string]bool{"sh": true, "bash": true, "dash": true, "ash": true, "ksh": true, "zsh": true}
	packageManagers = map[string]bool{"npm": true, "yarn": true, "pnpm": true, "npx": true}
	// quiet programs take words that are not programs.
	quiet = map[string]bool{
		"echo": true, "printf": true, "cat": true, "ls": true, "id": true, "chown": true, "chmod": true, "mkdir": true,
		"rm": true, "cp": true, "mv": true, "ln": true, "test": true, "grep": true, "sed": true, "awk": true, "cut": true,
		"find": true, "touch": true, "sleep": true, "true": true, "head": true, "tail": true, "sort": true, "tr": true,
	}
	// systemTools do not have directories of their own worth ranking.
	systemTools = map[string]bool{"env": true, "tini": true, "dumb-init": true, "gosu": true, "su-exec": true, "su": true, "setpriv": true}
)

func init() {
	for name := range shells {
		systemTools[name] = true
	}
	for name := range quiet {
		systemTools[name] = true
	}
}
