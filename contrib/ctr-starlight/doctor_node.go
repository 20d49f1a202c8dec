package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// checkKernel looks below root for what lazy images are made of.
func checkKernel(root string) []finding {
	var all []finding
	b, err := os.ReadFile(filepath.Join(root, "proc/filesystems"))
	if err != nil {
		return []finding{{"kernel", gradeFail, err.Error(), "run doctor on the node"}}
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 {
			known[f[len(f)-1]] = true
		}
	}
	for _, name := range []string{"erofs", "overlay", "fuse"} {
		f := finding{"kernel", gradeOK, "file system " + name, ""}
		if !known[name] {
			f.Grade, f.Detail = gradeFail, "the file system "+name+" is not there"
			f.Mend = fmt.Sprintf("modprobe %s, and a line %s in /etc/modules-load.d/starlight.conf; without it everything is pulled as stock containerd does", name, name)
		}
		all = append(all, f)
	}
	if _, err := os.Stat(filepath.Join(root, "dev/fuse")); err != nil {
		all = append(all, finding{"kernel", gradeFail, "/dev/fuse is not there", "modprobe fuse; in a container, give it the device"})
	}
	release, err := os.ReadFile(filepath.Join(root, "proc/sys/kernel/osrelease"))
	var major, minor int
	if err != nil {
		return all
	}
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		return all
	}
	at := func(ma, mi int) bool { return major > ma || major == ma && minor >= mi }
	f := finding{"kernel", gradeOK, "Linux " + strings.TrimSpace(string(release)), ""}
	switch {
	case !at(6, 5):
		f.Grade, f.Mend = gradeWarn, "from 6.5 on overlayfs has data-only layers, and reads are faster"
	case !at(6, 9):
		f.Grade, f.Mend = gradeWarn, "from 6.9 on reads under way survive the death of the lazy file system's process"
	case !at(6, 12):
		f.Grade, f.Mend = gradeWarn, "from 6.12 on an image takes no loop device"
	}
	return append(all, f)
}

// trap is a key of CRI that makes it pull without the transfer service, which is
// where delta pulls begin.
type trap struct {
	key  []string
	set  func(any) bool
	mend string
}

func isTrue(v any) bool { return v == true }

var traps = []trap{
	{[]string{"use_local_image_pull"}, isTrue, "take it out"},
	{[]string{"disable_snapshot_annotations"}, func(v any) bool { return v == false }, "take it out: the snapshotter asks for annotations itself"},
	{[]string{"discard_unpacked_layers"}, isTrue, "take it out: layers take no room"},
	{[]string{"image_pull_with_sync_fs"}, isTrue, "take it out: a complete image is synced"},
	{[]string{"max_concurrent_downloads"}, func(v any) bool { return v != int64(3) }, "take it out, and set the key of the same name in [plugins.'io.containerd.transfer.v1.local']"},
	{[]string{"registry", "mirrors"}, isTable, "move it to hosts.toml files below registry.config_path"},
	{[]string{"registry", "configs"}, isTable, "move it to hosts.toml files below registry.config_path"},
	{[]string{"registry", "auths"}, isTable, "use image pull secrets, or hosts.toml files below registry.config_path"},
}

func isTable(v any) bool { m, ok := v.(map[string]any); return ok && len(m) > 0 }

// checkConfig looks for what keeps CRI away from Starlight. The service tells of the
// engine's section what matters.
func checkConfig(name string) []finding {
	plugins, err := readPlugins(name, map[string]bool{})
	if errors.Is(err, fs.ErrNotExist) {
		return []finding{{"config", gradeWarn, name + " is not there: containerd has its defaults",
			"ctr-starlight proxy add --help prints the lines of a proxy; --config names another file"}}
	}
	if err != nil {
		return []finding{{"config", gradeFail, err.Error(), "containerd cannot start with it"}}
	}
	var all []finding
	const images, legacy = "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"
	snapshotter := ""
	for _, section := range []struct{ name, sub string }{{images, ""}, {legacy, "containerd"}, {legacy, ""}} {
		cri, _ := plugins[section.name].(map[string]any)
		if section.sub != "" {
			cri, _ = cri[section.sub].(map[string]any)
		}
		if s, ok := cri["snapshotter"].(string); ok {
			snapshotter = s
		}
		for _, t := range traps {
			if v, ok := lookup(cri, t.key); ok && t.set(v) {
				all = append(all, finding{"config", gradeFail,
					fmt.Sprintf("CRI pulls without Starlight because of %s in [plugins.'%s']", strings.Join(t.key, "."), section.name), t.mend})
			}
		}
	}
	if snapshotter != "starlight" {
		all = append(all, finding{"config", gradeWarn, "CRI does not use the snapshotter starlight",
			"for Kubernetes, set snapshotter = \"starlight\" in [plugins.'" + images + "']"})
	}
	if len(all) == 0 {
		all = append(all, finding{"config", gradeOK, name, ""})
	}
	return all
}

func lookup(m map[string]any, key []string) (any, bool) {
	for _, k := range key[:len(key)-1] {
		m, _ = m[k].(map[string]any)
	}
	v, ok := m[key[len(key)-1]]
	return v, ok
}

// readPlugins reads the sections of plugins from a configuration and what it
// imports, each file once. As with containerd, a later file wins key by key.
func readPlugins(name string, seen map[string]bool) (map[string]any, error) {
	if seen[name] {
		return nil, nil
	}
	seen[name] = true
	var file struct {
		Imports []string       `toml:"imports"`
		Plugins map[string]any `toml:"plugins"`
	}
	if len(seen) == 1 {
		file.Imports = []string{"/etc/containerd/conf.d/*.toml"} // containerd's default
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if err := toml.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	out := file.Plugins
	if out == nil {
		out = map[string]any{}
	}
	for _, pattern := range file.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(name), pattern)
		}
		more, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("%s: imports: %w", name, err)
		}
		for _, m := range more {
			plugins, err := readPlugins(m, seen)
			if err != nil {
				return nil, err
			}
			merge(out, plugins)
		}
	}
	return out, nil
}

func merge(into, from map[string]any) {
	for k, v := range from {
		old, okOld := into[k].(map[string]any)
		table, okNew := v.(map[string]any)
		if okOld && okNew {
			merge(old, table)
			continue
		}
		into[k] = v
	}
}
