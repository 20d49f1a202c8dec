// Package confedit puts Starlight's lines into a configuration of containerd, and takes
// them out again. It edits text, so that comments and all other lines stay what they
// are, and checks by parsing that the result means what was meant.
package confedit

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const (
	engine = "io.containerd.starlight.v1.engine"
	images = "io.containerd.cri.v1.images"
	legacy = "io.containerd.grpc.v1.cri"

	// A block is between these lines, each with the indentation of what is around it.
	begin = "# >>> starlight: ctr-starlight uninstall takes this out"
	end   = "# <<< starlight"
	// What comes behind begin.
	isNew     = ", and the file with it"
	noNewline = ", and the end of the line before it"
	// was is before a line that the block replaces.
	was = "# was: "
)

// snapshotters are the tables that may set the snapshotter of CRI, in all versions of the
// configuration.
var snapshotters = [][]string{{"plugins", images}, {"plugins", legacy, "containerd"}, {"plugins", "cri", "containerd"}}

// Change is what is to be in the configuration.
type Change struct {
	// Engine are the keys and tables of the engine's section, as TOML without its header;
	// arrays of tables with their full names.
	Engine string
	// CRI makes starlight the snapshotter of CRI.
	CRI bool
	// Template: the text is a template of k3s, which is TOML only once it is filled in.
	Template bool
	// New: there is no file yet.
	New bool
}

// ErrInstalled is wrapped if there are lines of Install in the text.
var ErrInstalled = errors.New("it has lines of ctr-starlight install already")

// Install returns text with the lines of c.
func Install(text []byte, c Change) ([]byte, error) {
	if hasBlock(text) {
		return nil, ErrInstalled
	}
	if c.Template {
		return installTemplate(text, c)
	}
	before, err := parse(text)
	if err != nil {
		return nil, err
	}
	want, err := meant(text, c)
	if err != nil {
		return nil, err
	}
	section := ""
	if c.Engine != "" {
		if at := before.find("plugins", engine); at > 0 {
			return nil, fmt.Errorf("line %d has the section [plugins.'%s']: change it by hand, or take it out first", at, engine)
		}
		section = engineSection(c.Engine)
	}
	out := text
	if c.CRI {
		var more string
		if out, more, err = setSnapshotter(text, before); err != nil {
			return nil, err
		}
		section += more
	}
	if section != "" {
		out = appendBlock(out, section, c.New)
	}
	got, err := decode(out)
	if err == nil && !reflect.DeepEqual(got, want) {
		err = errors.New("it would mean something else")
	}
	if err != nil {
		return nil, fmt.Errorf("the configuration is not of a kind that can be edited here (%w): add these lines by hand:\n%s", err, byHand(c))
	}
	return out, nil
}

// installTemplate adds the section of the engine, which no template has.
func installTemplate(text []byte, c Change) ([]byte, error) {
	switch {
	case c.CRI:
		return nil, errors.New("k3s itself writes the snapshotter of CRI: give it --snapshotter starlight")
	case bytes.Contains(text, []byte(engine)):
		return nil, fmt.Errorf("it names %s already: change it by hand, or take that out first", engine)
	}
	section := engineSection(c.Engine)
	if _, err := decode([]byte(section)); err != nil {
		return nil, err
	}
	if len(text) == 0 {
		section = "{{ template \"base\" . }}\n" + section
	}
	return appendBlock(text, section, c.New), nil
}

func engineSection(keys string) string { return fmt.Sprintf("[plugins.'%s']\n%s", engine, keys) }

func imagesSection() string {
	return fmt.Sprintf("[plugins.'%s']\n  snapshotter = \"starlight\"\n", images)
}

func byHand(c Change) string {
	var s string
	if c.Engine != "" {
		s = engineSection(c.Engine)
	}
	if c.CRI {
		s += imagesSection()
	}
	return s
}

// appendBlock appends lines between markers.
func appendBlock(text []byte, lines string, file bool) []byte {
	var b bytes.Buffer
	b.Write(text)
	head := begin
	switch {
	case len(text) == 0:
		if file {
			head += isNew
		}
		if !strings.HasPrefix(lines, "{{") {
			lines = "version = 3\n" + lines
		}
	case !bytes.HasSuffix(text, []byte("\n")):
		head += noNewline
		b.WriteByte('\n')
	}
	b.WriteString(head + "\n" + lines + end + "\n")
	return b.Bytes()
}

// setSnapshotter sets the key of CRI where it is, or where its section begins. If there
// is no section, it returns one that is to be appended.
func setSnapshotter(text []byte, d *document) (out []byte, more string, err error) {
	lines := strings.SplitAfter(string(text), "\n")
	for _, path := range snapshotters {
		at := d.key(append(slices.Clip(path), "snapshotter")...)
		if at == 0 {
			continue
		}
		line := lines[at-1]
		var alone map[string]any
		if err := toml.Unmarshal([]byte(line), &alone); err != nil || len(alone) != 1 {
			return nil, "", fmt.Errorf("line %d sets the snapshotter of CRI in a way that cannot be edited here: set it to \"starlight\" by hand", at)
		}
		if alone["snapshotter"] == "starlight" {
			return text, "", nil
		}
		indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
		stripped, newline := strings.CutSuffix(line, "\n")
		if !newline {
			return nil, "", fmt.Errorf("line %d is not ended: add a newline at the end of the file first", at)
		}
		lines[at-1] = indent + begin + "\n" + indent + was + stripped + "\n" + indent + "snapshotter = \"starlight\"\n" + indent + end + "\n"
		return []byte(strings.Join(lines, "")), "", nil
	}
	at := d.table("plugins", images)
	if at == 0 {
		return text, imagesSection(), nil
	}
	if !strings.HasSuffix(lines[at-1], "\n") {
		return nil, "", fmt.Errorf("line %d is not ended: add a newline at the end of the file first", at)
	}
	lines[at-1] += "  " + begin + "\n  snapshotter = \"starlight\"\n  " + end + "\n"
	return []byte(strings.Join(lines, "")), "", nil
}

// meant is what the result has to decode to.
func meant(text []byte, c Change) (map[string]any, error) {
	all, err := decode(text)
	if err != nil {
		return nil, err
	}
	if len(text) == 0 {
		all["version"] = int64(3)
	}
	sub := func(m map[string]any, key string) map[string]any {
		t, ok := m[key].(map[string]any)
		if !ok {
			t = map[string]any{}
			m[key] = t
		}
		return t
	}
	plugins := sub(all, "plugins")
	if c.Engine != "" {
		section, err := decode([]byte(engineSection(c.Engine)))
		if err != nil {
			return nil, fmt.Errorf("section of the engine: %w", err)
		}
		plugins[engine] = sub(section, "plugins")[engine]
	}
	if c.CRI {
		at := snapshotterOf(plugins)
		if at == nil {
			at = sub(plugins, images)
		}
		at["snapshotter"] = "starlight"
	}
	return all, nil
}

// snapshotterOf is the table that sets the snapshotter of CRI, or nil.
func snapshotterOf(plugins map[string]any) map[string]any {
	for _, path := range snapshotters {
		t := plugins
		for _, key := range path[1:] {
			t, _ = t[key].(map[string]any)
		}
		if t["snapshotter"] != nil {
			return t
		}
	}
	return nil
}

// Uninstall returns text without the lines of Install. remove says that the file was made
// by Install, and has nothing else in it.
func Uninstall(text []byte) (out []byte, remove bool, err error) {
	var kept []string
	inside, made, cut := false, false, false
	for line := range strings.Lines(string(text)) {
		trimmed := strings.TrimSpace(line)
		switch {
		case !inside && strings.HasPrefix(trimmed, begin):
			inside = true
			made = made || strings.HasSuffix(trimmed, isNew)
			cut = strings.HasSuffix(trimmed, noNewline)
		case inside && trimmed == end:
			if cut && len(kept) > 0 {
				kept[len(kept)-1] = strings.TrimSuffix(kept[len(kept)-1], "\n")
			}
			inside, cut = false, false
		case inside:
			if old, ok := strings.CutPrefix(strings.TrimLeft(line, " \t"), was); ok {
				kept = append(kept, old)
			}
		default:
			kept = append(kept, line)
		}
	}
	if inside {
		return nil, false, fmt.Errorf("the line %q is missing after %q: take the lines out by hand", end, begin)
	}
	out = []byte(strings.Join(kept, ""))
	return out, made && len(out) == 0, nil
}

// hasBlock tells whether there are lines of Install.
func hasBlock(text []byte) bool {
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte(begin)) {
			return true
		}
	}
	return false
}

func decode(text []byte) (map[string]any, error) {
	all := map[string]any{}
	if err := toml.Unmarshal(text, &all); err != nil {
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			row, _ := de.Position()
			return nil, fmt.Errorf("line %d: %w", row, err)
		}
		return nil, err
	}
	return all, nil
}

// document is where the expressions of a text are.
type document struct {
	all []expression
}

type expression struct {
	path  []string // from the root
	line  int
	table bool // a header of a table
}

func parse(text []byte) (*document, error) {
	if _, err := decode(text); err != nil {
		return nil, err
	}
	var p unstable.Parser
	p.Reset(text)
	d := &document{}
	var within []string
	for p.NextExpression() {
		n := p.Expression()
		var path []string
		line := 0
		for k := n.Key(); k.Next(); {
			path = append(path, string(k.Node().Data))
			if line == 0 {
				line = p.Shape(k.Node().Raw).Start.Line
			}
		}
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			within = path
			d.all = append(d.all, expression{path, line, n.Kind == unstable.Table})
		case unstable.KeyValue:
			d.all = append(d.all, expression{append(slices.Clip(within), path...), line, false})
		}
	}
	return d, p.Error()
}

// find returns the line of the first expression at or below a path, or 0.
func (d *document) find(path ...string) int {
	for _, e := range d.all {
		if len(e.path) >= len(path) && reflect.DeepEqual(e.path[:len(path)], path) {
			return e.line
		}
	}
	return 0
}

// key returns the line of a key, or 0.
func (d *document) key(path ...string) int { return d.line(false, path) }

// table returns the line of the header of a table, or 0.
func (d *document) table(path ...string) int { return d.line(true, path) }

func (d *document) line(table bool, path []string) int {
	for _, e := range d.all {
		if e.table == table && reflect.DeepEqual(e.path, path) {
			return e.line
		}
	}
	return 0
}
