package predict

import (
	"path"
	"regexp"
	"strings"
)

// variable is how a script names one, alone within quotes or not.
var variable = regexp.MustCompile(`"\$\{?(\w+)\}?"|\$(\w+)|\$\{(\w+)\}`)

// substitute puts in what the image's configuration says that variables hold.
func (p *predictor) substitute(line string) string {
	if !strings.Contains(line, "$") {
		return line
	}
	n := 0
	return variable.ReplaceAllStringFunc(line, func(v string) string {
		value := p.env[strings.Trim(v, `"${}`)]
		if n++; value == "" || len(value) > 1024 || n > 64 {
			return v
		}
		return value
	})
}

// maxWords bounds the words looked at in one script.
const maxWords = 20000

// shell follows "sh script args" and "sh -c text".
func (p *predictor) shell(argv []string, dir string, depth int) {
	for i := 1; i < len(argv); i++ {
		arg := argv[i]
		switch {
		case strings.HasPrefix(arg, "-") && strings.HasSuffix(arg, "c") && !strings.HasPrefix(arg, "--") && i+1 < len(argv):
			p.text(argv[i+1], argv[i+2:], dir, depth)
			return
		case strings.HasPrefix(arg, "-"):
		default:
			if n := p.view.file(abs(dir, arg)); n != nil {
				p.add(n)
				p.text(string(p.script(n)), argv[i+1:], dir, depth)
			}
			return
		}
	}
}

// text follows the words of a shell script. Nothing is evaluated: a word that
// names a file is read, a word in command position that names a program is run.
// The script's own arguments are run where it says "$@", at the latest at its end.
func (p *predictor) text(script string, args []string, dir string, depth int) {
	if depth > maxDepth {
		return
	}
	words := 0
	ranArgs := false
	for line := range strings.Lines(script) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		line = p.substitute(line)
		if !ranArgs && (strings.Contains(line, `exec "$@"`) || strings.Contains(line, "exec $@") || strings.Contains(line, "exec $*")) {
			ranArgs = true
			p.arguments(args, dir, depth)
		}
		for command := range strings.FieldsFuncSeq(line, func(r rune) bool { return strings.ContainsRune(";|&()`\n", r) }) {
			fields := strings.FieldsFunc(command, func(r rune) bool { return strings.ContainsRune(" \t\r\"'<>{}[]", r) })
			if words += len(fields); words > maxWords {
				return
			}
			p.shellCommand(fields, dir, depth)
		}
	}
	if !ranArgs {
		p.arguments(args, dir, depth)
	}
}

func (p *predictor) arguments(args []string, dir string, depth int) {
	p.words(args, dir)
	p.wrapped(args, dir, depth)
}

func (p *predictor) shellCommand(fields []string, dir string, depth int) {
	for len(fields) > 0 && (keywords[fields[0]] || strings.Contains(fields[0], "=") || fields[0] == "$") {
		fields = fields[1:]
	}
	for i, w := range fields {
		if j := strings.LastIndexByte(w, '='); j >= 0 {
			w = w[j+1:]
		}
		if strings.ContainsAny(w, "$*?") {
			continue
		}
		switch {
		case i == 0 && (w == "." || w == "source") && len(fields) > 1:
			if n := p.view.file(abs(dir, fields[1])); n != nil && !p.ran["source "+n.path] {
				p.ran["source "+n.path] = true
				p.add(n)
				p.text(string(p.script(n)), nil, dir, depth+1)
			}
			return
		case i == 0 && !builtins[w]:
			argv := fields
			for j, f := range argv { // what a variable holds is not known
				if strings.Contains(f, "$") {
					argv = argv[:j]
					break
				}
			}
			if len(argv) > 0 {
				p.command(argv, dir, depth+1)
			}
		case i > 0 && strings.HasPrefix(w, "/"):
			p.add(p.view.file(path.Clean(w)))
		}
	}
}

var (
	keywords = map[string]bool{
		"if": true, "then": true, "else": true, "elif": true, "while": true, "until": true, "do": true, "!": true,
		"exec": true, "command": true, "time": true, "nohup": true, "eval": true,
	}
	builtins = map[string]bool{
		"echo": true, "printf": true, "test": true, "true": true, "false": true, "cd": true, "set": true, "export": true,
		"local": true, "return": true, "exit": true, "shift": true, "unset": true, "read": true, "case": true, "esac": true,
		"fi": true, "done": true, "for": true, "in": true, "function": true, "declare": true, "trap": true, "wait": true,
		"kill": true, "umask": true, "pwd": true, "type": true, "break": true, "continue": true, "shopt": true, "let": true,
	}
)
