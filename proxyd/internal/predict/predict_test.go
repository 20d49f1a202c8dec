package predict

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// TestOrder names, per case, files that must come in this order.
func TestOrder(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		cfg   Config
		want  []string // a subsequence of the order, at its beginning if first
		first int      // all of want are among the first so many
	}{
		{
			name: "entrypoint script runs its arguments",
			files: map[string]string{
				"etc/passwd": "root", "bin/sh*": "\x7fELF no", "usr/local/bin/entry.sh*": "#!/bin/sh\nset -e\n. /etc/defaults\nchown -R x /data\nexec \"$@\"\n",
				"etc/defaults": "A=1", "usr/bin/chown*": "x", "usr/bin/redis-server*": "y", "etc/redis/redis.conf": "conf",
				"usr/share/doc/a": "doc", "usr/bin/zzz*": "unrelated",
			},
			cfg:   Config{Entrypoint: []string{"entry.sh"}, Cmd: []string{"redis-server", "/etc/redis/redis.conf"}},
			want:  []string{"etc/passwd", "usr/local/bin/entry.sh", "bin/sh", "etc/defaults", "usr/bin/chown", "etc/redis/redis.conf", "usr/bin/redis-server"},
			first: 7,
		},
		{
			name:  "wrapper and symlinks",
			files: map[string]string{"usr/bin/tini*": "t", "bin": "-> usr/bin", "usr/bin/app*": "a", "usr/bin/other*": "o"},
			cfg:   Config{Entrypoint: []string{"/bin/tini", "--"}, Cmd: []string{"app", "-x"}},
			want:  []string{"usr/bin/tini", "usr/bin/app"},
			first: 2,
		},
		{
			name: "node follows require and import",
			files: map[string]string{
				"usr/local/bin/node*": "n", "app/package.json": `{"main":"server.js"}`,
				"app/server.js": "const a = require('./lib/a'); import b from \"b\"; require('fs');",
				"app/lib/a.js":  "exports.x = require('../data.json')", "app/data.json": "{}",
				"app/lib/unused.js":               "1",
				"app/node_modules/b/package.json": `{"exports":{".":{"import":"./esm.mjs","node":{"require":"./cjs/x.cjs"}}}}`,
				"app/node_modules/b/esm.mjs":      "1", "app/node_modules/b/cjs/x.cjs": "require('c/deep'); require('d')",
				"app/node_modules/b/cjs/package.json": `{"type":"commonjs"}`,
				"app/node_modules/c/deep/index.js":    "1",
				"app/node_modules/d/package.json":     `{"exports":{".":[{"module-sync":"./sync.mjs","default":"./zz.js"}]}}`,
				"app/node_modules/d/sync.mjs":         "1", "app/node_modules/d/zz.js": "2",
				"app/node_modules/b/README.md": "doc",
			},
			cfg:   Config{Cmd: []string{"node", "server.js"}, WorkingDir: "/app"},
			want:  []string{"usr/local/bin/node", "app/package.json", "app/server.js", "app/lib/a.js", "app/data.json", "app/node_modules/b/package.json", "app/node_modules/b/cjs/package.json", "app/node_modules/b/cjs/x.cjs", "app/node_modules/c/deep/index.js", "app/node_modules/d/sync.mjs", "app/lib/unused.js", "app/node_modules/b/README.md"},
			first: 15,
		},
		{
			name: "ruby loads the library and the gem of a stub",
			files: map[string]string{
				"usr/bin/ruby": "-> ruby3.1", "usr/bin/ruby3.1*": "r",
				"usr/bin/puma*":                                      "#!/usr/bin/ruby\nrequire 'rubygems'\nload Gem.activate_bin_path('puma', 'puma', version)\n",
				"usr/lib/ruby/vendor_ruby/rubygems.rb":               "require_relative 'rubygems/defaults'\nautoload :Late, 'rubygems/late'\n# require 'commented'\n",
				"usr/lib/ruby/vendor_ruby/rubygems/defaults.rb":      "1",
				"usr/lib/ruby/vendor_ruby/rubygems/late.rb":          "1",
				"usr/lib/ruby/vendor_ruby/commented.rb":              "1",
				"usr/lib/ruby/3.1.0/set.rb":                          "1",
				"usr/lib/ruby/3.1.0/x86_64-linux/fast.so":            "not an ELF file",
				"usr/lib/x86_64-linux-gnu/ruby/3.1.0/enc/encdb.so":   "not an ELF file",
				"var/lib/gems/3.1.0/specifications/puma-5.6.gemspec": "spec",
				"var/lib/gems/3.1.0/gems/puma-5.6/bin/puma":          "require 'puma/cli'",
				"var/lib/gems/3.1.0/gems/puma-5.6/lib/puma/cli.rb":   "require 'set'\nrequire \"puma/#{x}\"\n  require_relative '../rest'\n",
				"var/lib/gems/3.1.0/gems/puma-5.6/lib/rest.rb":       "",
				"var/lib/gems/3.1.0/gems/puma-dev-1.0/bin/puma":      "require 'other'",
				"app/config.ru": "require_relative 'app'\nrun App",
				"app/app.rb":    "class App; end",
				"app/data.bin":  "1",
				"aaa":           "unrelated",
			},
			cfg: Config{Cmd: []string{"puma", "config.ru"}, WorkingDir: "/app"},
			want: []string{
				"usr/bin/puma", "usr/bin/ruby3.1", "usr/lib/ruby/vendor_ruby/rubygems.rb", "usr/lib/ruby/vendor_ruby/rubygems/defaults.rb",
				"var/lib/gems/3.1.0/specifications/puma-5.6.gemspec", "var/lib/gems/3.1.0/gems/puma-5.6/bin/puma",
				"var/lib/gems/3.1.0/gems/puma-5.6/lib/puma/cli.rb", "usr/lib/ruby/3.1.0/set.rb", "app/config.ru", "app/app.rb",
				"usr/lib/ruby/vendor_ruby/rubygems/late.rb", "app/data.bin",
			},
			first: 12,
		},
		{
			name: "java, by a script that knows its home",
			files: map[string]string{
				"bin/sh*": "s", "usr/lib/jvm/17/bin/java*": "j", "usr/lib/jvm/17/lib/jvm.cfg": "-> /etc/jvm.cfg", "etc/jvm.cfg": "c",
				"usr/lib/jvm/17/lib/modules": "m", "usr/lib/jvm/17/conf/security/java.security": "p", "usr/lib/jvm/17/lib/other": "o",
				"opt/cat/bin/run.sh*": "#!/bin/sh\n. \"$CAT_HOME\"/bin/env.sh\nCP=\"$CP\"\"$CAT_HOME\"/bin/boot.jar\nexec \"$_RUNJAVA\" -cp $CP\n",
				"opt/cat/bin/env.sh":  "x=1", "opt/cat/bin/boot.jar": "b", "opt/cat/lib/a.jar": "-> ../../../usr/share/java/a.jar",
				"usr/share/java/a.jar": "a", "etc/cat/server.xml": "x", "aaa": "unrelated",
			},
			cfg: Config{Cmd: []string{"/opt/cat/bin/run.sh"}, Env: []string{"JAVA_HOME=/usr/lib/jvm/17", "CAT_HOME=/opt/cat"}},
			want: []string{
				"opt/cat/bin/run.sh", "bin/sh", "opt/cat/bin/env.sh", "opt/cat/bin/boot.jar", "etc/jvm.cfg", "usr/lib/jvm/17/lib/modules",
				"usr/lib/jvm/17/conf/security/java.security", "usr/share/java/a.jar", "etc/cat/server.xml", "aaa",
			},
			first: 11,
		},
		{
			name: "java with a class path",
			files: map[string]string{
				"usr/bin/java": "-> ../lib/jvm/8/bin/java", "usr/lib/jvm/8/bin/java*": "j", "usr/lib/jvm/8/jre/lib/rt.jar": "r",
				"app/libs/a.jar": "a", "app/libs/note.txt": "n", "app/b.jar": "b", "app/conf.yml": "c", "app/zzz": "unrelated",
			},
			cfg:   Config{Entrypoint: []string{"java", "-Xmx1g", "-cp", "libs/*:b.jar", "Main", "conf.yml"}, WorkingDir: "/app"},
			want:  []string{"usr/lib/jvm/8/bin/java", "usr/lib/jvm/8/jre/lib/rt.jar", "app/libs/a.jar", "app/b.jar", "app/conf.yml", "app/libs/note.txt", "app/zzz"},
			first: 7,
		},
		{
			name: "npm start",
			files: map[string]string{
				"usr/bin/npm": "-> ../lib/node_modules/npm/bin/npm-cli.js", "usr/lib/node_modules/npm/bin/npm-cli.js*": "#!/usr/bin/env node\nrequire('../lib/cli')",
				"usr/lib/node_modules/npm/lib/cli.js": "1", "usr/bin/env*": "e", "usr/bin/node*": "n",
				"srv/package.json": `{"scripts":{"start":"NODE_ENV=production node ./main"}}`, "srv/main.js": "1",
			},
			cfg:  Config{Cmd: []string{"npm", "start"}, WorkingDir: "/srv"},
			want: []string{"usr/lib/node_modules/npm/bin/npm-cli.js", "usr/bin/env", "usr/bin/node", "usr/lib/node_modules/npm/lib/cli.js", "srv/main.js"},
		},
		{
			name: "python imports compiled code",
			files: map[string]string{
				"usr/local/bin/python3": "-> python3.12", "usr/local/bin/python3.12*": "p",
				"usr/local/lib/python3.12/encodings/__init__.py":                                "import codecs",
				"usr/local/lib/python3.12/encodings/__pycache__/__init__.cpython-312.pyc":       "c1",
				"usr/local/lib/python3.12/encodings/__pycache__/__init__.cpython-312.opt-1.pyc": "c2",
				"usr/local/lib/python3.12/codecs.py":                                            "x",
				"usr/local/lib/python3.12/site-packages/flask/__init__.py":                      "from .app import Flask",
				"usr/local/lib/python3.12/site-packages/flask/app.py":                           "from . import wrappers\n",
				"usr/local/lib/python3.12/site-packages/flask/wrappers.py":                      "y",
				"usr/local/lib/python3.12/unused.py":                                            "z",
				"app/main.py":                                                                   "import flask, helper\nfrom pytz import (\n    utc,  # (the)\n    tables as t,\n)\n",
				"usr/local/lib/python3.12/site-packages/pytz/__init__.py":                       "import os", "usr/local/lib/python3.12/site-packages/pytz/tables.py": "t",
				"usr/local/lib/python3.12/site-packages/pytz/zoneinfo/Africa/Cairo": "TZif",
				"app/helper.py": "h",
			},
			cfg:  Config{Entrypoint: []string{"python3"}, Cmd: []string{"main.py"}, WorkingDir: "/app"},
			want: []string{"usr/local/bin/python3.12", "usr/local/lib/python3.12/encodings/__pycache__/__init__.cpython-312.pyc", "usr/local/lib/python3.12/codecs.py", "app/main.py", "usr/local/lib/python3.12/site-packages/flask/__init__.py", "usr/local/lib/python3.12/site-packages/flask/app.py", "usr/local/lib/python3.12/site-packages/flask/wrappers.py", "app/helper.py", "usr/local/lib/python3.12/site-packages/pytz/zoneinfo/Africa/Cairo", "usr/local/lib/python3.12/site-packages/pytz/tables.py", "usr/local/lib/python3.12/unused.py"},
		},
		{
			name: "python imports in its order",
			files: map[string]string{
				"usr/bin/python3*": "p", "usr/lib/python3/encodings/__init__.py": "x",
				"usr/lib/python3/dist-packages/a.pth":                "import os; __import__('hook')",
				"usr/lib/python3/dist-packages/hook.py":              "h",
				"usr/lib/python3/dist-packages/fw/__init__.py":       "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import never\nWORKER = 'fw.worker.Sync'\n",
				"usr/lib/python3/dist-packages/fw/worker.py":         "w",
				"usr/lib/python3/dist-packages/a-1.dist-info/RECORD": "r", "usr/lib/python3/dist-packages/a-1.dist-info/METADATA": "m",
				"usr/lib/python3/importlib/metadata.py": "y",
				"app/main.py":                           "def f():\n    import late\n\nimport fw\nimport importlib.metadata\n",
				"app/late.py":                           "l", "app/never.py": "n",
			},
			cfg: Config{Entrypoint: []string{"python3"}, Cmd: []string{"main.py"}, WorkingDir: "/app"},
			want: []string{
				"usr/lib/python3/dist-packages/a.pth", "usr/lib/python3/dist-packages/hook.py", "app/main.py", "usr/lib/python3/dist-packages/fw/__init__.py",
				"usr/lib/python3/dist-packages/fw/worker.py", "usr/lib/python3/importlib/metadata.py", "usr/lib/python3/dist-packages/a-1.dist-info/METADATA",
				"app/late.py", "app/never.py", "usr/lib/python3/dist-packages/a-1.dist-info/RECORD",
			},
		},
		{
			name: "the rest goes by class and size",
			files: map[string]string{
				"usr/bin/srv*": "s", "etc/srv.conf": "c", "work/a": "a", "usr/lib/x": "x", "usr/lib/big": strings.Repeat("b", 300<<10),
				"usr/share/man/m": "m", "usr/include/x.h": "h",
			},
			cfg:   Config{Cmd: []string{"/usr/bin/srv"}, WorkingDir: "/work"},
			want:  []string{"usr/bin/srv", "work/a", "etc/srv.conf", "usr/lib/x", "usr/lib/big", "usr/include/x.h", "usr/share/man/m"},
			first: 7,
		},
		{
			name:  "nothing to run",
			files: map[string]string{"b": "1", "a": "2", "x": "-> y", "y": "-> x"},
			cfg:   Config{Entrypoint: []string{"/x"}, WorkingDir: "../.."},
			want:  []string{"a", "b"},
			first: 2,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := newTree(tt.files).paths(t, tt.cfg)
			at := -1
			for _, w := range tt.want {
				i := slices.Index(got, w)
				if i <= at {
					t.Fatalf("%q is at %d, want it after %d; order:\n%s", w, i, at, strings.Join(got, "\n"))
				}
				at = i
			}
			if tt.first > 0 && at >= tt.first {
				t.Errorf("%q is at %d, want all among the first %d; order:\n%s", tt.want[len(tt.want)-1], at, tt.first, strings.Join(got, "\n"))
			}
		})
	}
}

// TestOrderOfHostBinaries compares with what the dynamic linker says.
func TestOrderOfHostBinaries(t *testing.T) {
	for _, name := range []string{"/bin/ls", "/bin/bash", "/usr/bin/git", "/usr/bin/python3"} {
		t.Run(filepath.Base(name), func(t *testing.T) {
			out, err := exec.Command("ldd", name).Output()
			if err != nil {
				t.Skipf("ldd %s: %v", name, err)
			}
			tr := newTree(map[string]string{"aaa": "unrelated", "etc/passwd": "root"})
			tr.host(t, name)
			libs := 0
			for f := range strings.FieldsSeq(string(out)) {
				if strings.HasPrefix(f, "/") {
					tr.host(t, f)
					libs++
				}
			}
			got := tr.paths(t, Config{Cmd: []string{name}})
			if i := slices.Index(got, "aaa"); i != len(got)-1 || libs == 0 {
				t.Errorf("the unrelated file is at %d of %d, %d libraries: %v", i, len(got), libs, got)
			}
		})
	}
}

// TestOriginAndRunpath builds real libraries that only $ORIGIN finds.
func TestOriginAndRunpath(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc to make a library with a run path")
	}
	for _, flag := range []string{"--enable-new-dtags", "--disable-new-dtags"} {
		dir := t.TempDir()
		run := func(src string, args ...string) {
			t.Helper()
			cmd := exec.Command(gcc, append(args, "-x", "c", "-")...)
			cmd.Dir = dir
			cmd.Stdin = strings.NewReader(src)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("gcc: %v: %s", err, out)
			}
		}
		run("int f(void){return 1;}", "-shared", "-fPIC", "-nostdlib", "-o", "libone.so", "-Wl,-soname,libone.so")
		cmd := exec.Command(gcc, "-nostdlib", "-o", "prog", "-Wl,-rpath,$ORIGIN/../lib", "-Wl,"+flag, "-Wl,-e,main", "-x", "c", "-", "-x", "none", "libone.so")
		cmd.Dir = dir
		cmd.Stdin = strings.NewReader("int f(void); int main(void){return f();}")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("gcc: %v: %s", err, out)
		}
		host := &tree{}
		host.host(t, filepath.Join(dir, "prog"))
		host.host(t, filepath.Join(dir, "libone.so"))
		tr := newTree(map[string]string{"aaa": "unrelated"})
		tr.file("opt/app/bin/prog", host.contents[0], 0o755)
		tr.file("opt/app/lib/libone.so", host.contents[1], 0o644)
		got := tr.paths(t, Config{Cmd: []string{"/opt/app/bin/prog"}, WorkingDir: "/opt"})
		if want := []string{"opt/app/bin/prog", "opt/app/lib/libone.so", "aaa"}; !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", flag, got, want)
		}
	}
}

func TestOrderEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tr := newTree(map[string]string{"bin/x*": "#!/bin/x"})
	if _, _, err := Order(ctx, tr.entries, Config{Cmd: []string{"x"}}, tr, DefaultLimits()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func TestOrderIsBounded(t *testing.T) {
	var calls strings.Builder
	files := map[string]string{"bin/sh*": "s"}
	for i := range 2000 {
		fmt.Fprintf(&calls, "/bin/p%d %d\n", i, i)
		files[fmt.Sprintf("bin/p%d*", i)] = "#!/bin/sh\n/bin/main\n"
	}
	files["bin/main*"] = "#!/bin/sh\n" + calls.String()
	limits := DefaultLimits()
	limits.Bytes = 1 << 20
	tr := newTree(files)
	order, _, err := Order(t.Context(), tr.entries, Config{Cmd: []string{"main"}}, tr, limits)
	if err != nil || len(order) != len(tr.contents) {
		t.Errorf("got %d objects and %v, want all %d", len(order), err, len(tr.contents))
	}
}

// Symlinks to the directory that they are in make it endlessly deep, and as wide as there
// are of them.
func TestOrderOfLoops(t *testing.T) {
	files := map[string]string{"usr/bin/served*": "s", "etc/served/a.conf": "load a.so", "usr/lib/served/a.so": "x", "var/www/a": "served"}
	for _, dir := range []string{"etc/served", "usr/lib/served", "var/www"} {
		for i := range 100 {
			files[fmt.Sprintf("%s/loop%d", dir, i)] = "-> ."
		}
	}
	tr := newTree(files)
	if got := tr.paths(t, Config{Cmd: []string{"served"}}); len(got) != len(tr.contents) || got[0] != "usr/bin/served" {
		t.Errorf("got %v, want all %d objects, the program first", got, len(tr.contents))
	}
}

// FuzzOrder runs arbitrary bytes as program, script, module and configuration.
func FuzzOrder(f *testing.F) {
	for _, name := range []string{"/bin/ls", "/bin/true"} {
		tr := &tree{}
		tr.host(f, name)
		for _, c := range tr.contents {
			f.Add(c[:min(len(c), 8<<10)], uint8(0))
		}
	}
	f.Add([]byte("#!/bin/prog -x\n. /bin/prog\nexec \"$@\""), uint8(1))
	f.Add([]byte("require('./prog'); import x from 'm'"), uint8(2))
	f.Add([]byte("from ..prog import (a, b)\nimport prog.x as y"), uint8(3))
	f.Add([]byte("include /etc/*.conf\n/lib\n"), uint8(4))
	f.Add([]byte(`{"exports":[{"require":{"default":"./a"}}],"main":"..","scripts":{"start":"npm start"}}`), uint8(5))
	f.Add([]byte("require 'm'; require_relative('../prog')\nautoload :X, 'prog'\ngem 'm'\nload Gem.bin_path('m', 'x')"), uint8(7))
	f.Add([]byte("PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00"), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		ls := &tree{}
		ls.host(t, "/bin/true")
		tr := newTree(map[string]string{
			"bin/sh*": "s", "bin/node*": "n", "bin/python3*": "p", "app/x": "-> " + string(b[:min(len(b), 50)]),
			"app/node_modules/m/package.json": string(b), "app/package.json": string(b), "etc/ld.so.conf": string(b),
			"app/prog.js": string(b), "app/prog.py": string(b), "app/m/__init__.py": string(b), "lib/python3.1/encodings/__init__.py": string(b),
			"bin/npm*": "n", "bin/java*": "j", "lib/modules": string(b), "bin/ruby*": "r", "app/prog.rb": string(b), "app/Gemfile": string(b), "bin/bundle*": "#!/bin/ruby\n" + string(b),
			"usr/lib/ruby/3.1.0/rubygems.rb": string(b), "var/lib/gems/3.1.0/gems/m-1/lib/m.rb": string(b), "var/lib/gems/3.1.0/gems/m-1/exe/x": string(b),
		})
		tr.file("bin/prog", b, 0o755)
		tr.file("bin/true", ls.contents[0], 0o755)
		argv := [][]string{{"prog", "a"}, {"sh", "/bin/prog", "node"}, {"node", "prog"}, {"python3", "prog.py", "m:x"}, {"/bin/true"}, {"npm", "start"}, {"app/x"}, {"ruby", "prog.rb"}, {"bundle", "exec", "ruby", "prog.rb"}, {"java", "-cp", "/app/*:" + string(b[:min(len(b), 9)]), "-jar", "app/prog.js"}}
		tr.paths(t, Config{Cmd: argv[int(kind)%len(argv)], WorkingDir: "app"})
	})
}

// BenchmarkOrder is the prediction for an image with 25000 files.
func BenchmarkOrder(b *testing.B) {
	tr := &tree{}
	tr.host(b, "/bin/ls")
	for i := range 25000 {
		tr.entries = append(tr.entries, Entry{Path: fmt.Sprintf("usr/lib/f%d", i), Type: toc.TypeReg, Mode: 0o644, Object: len(tr.contents), Size: 1})
		tr.contents = append(tr.contents, []byte{'x'})
	}
	for b.Loop() {
		if _, _, err := Order(b.Context(), tr.entries, Config{Cmd: []string{"ls"}}, tr, DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

// compiled makes a shared library or a program with gcc.
func compiled(t *testing.T, dir, name, src string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("gcc", append([]string{"-nostdlib", "-o", name, "-x", "c", "-", "-x", "none"}, args...)...)
	cmd.Dir = dir
	cmd.Stdin = strings.NewReader(src)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Of a large library comes first what ld.so goes through, and the rest after all else
// that the start reads.
func TestLargeLibrary(t *testing.T) {
	dir := t.TempDir()
	lib := compiled(t, dir, "libbig.so", "static const char big[20<<20] = {1}; char data[] = \"data\"; char *at = data; const char *f(void) { return big; }",
		"-shared", "-fPIC", "-Wl,-soname,libbig.so")
	prog := compiled(t, dir, "prog", "const char *f(void); int main(void) { return *f(); }", "-Wl,-e,main", "libbig.so")
	tr := newTree(map[string]string{"aaa": "unrelated", "etc/nsswitch.conf": "early", "etc/services": "read in the end", "var/www/html/a/index.html": "served"})
	tr.file("usr/lib/libbig.so", lib, 0o644)
	tr.file("usr/bin/prog", prog, 0o755)
	order, hot, err := Order(t.Context(), tr.entries, Config{Cmd: []string{"prog"}}, tr, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	pieces := uint32((len(lib) + toc.PieceSize - 1) / toc.PieceSize)
	object := func(name string) uint32 { return uint32(tr.at("/" + name).Object) }
	first := slices.IndexFunc(order, func(it Item) bool { return it.Object == object("usr/lib/libbig.so") })
	services := slices.Index(order, Item{Object: object("etc/services")})
	if served := slices.Index(order, Item{Object: object("var/www/html/a/index.html")}); served != hot-2 {
		t.Errorf("got what is served at %d, want it right before the code of the library, the last of %d", served, hot)
	}
	if first < 0 || first > services || order[first].First != 0 || order[first].Pieces != 1 {
		t.Fatalf("got %v of %d pieces, want the first piece of object %d before object %d", order, pieces, object("usr/lib/libbig.so"), object("etc/services"))
	}
	data := order[first+1] // follows the constants in the file
	if code := order[hot-1]; data.First+data.Pieces != pieces || code.First != 1 || code.First+code.Pieces != data.First || hot-1 < services {
		t.Errorf("got %v, %d of them hot, want the data of object %d second and the constants at the end of what is hot", order, hot, data.Object)
	}
	if got := tr.paths(t, Config{Cmd: []string{"prog"}}); got[len(got)-1] != "aaa" {
		t.Errorf("got %v, want what is unrelated last", got)
	}
}

// What an ELF file has for debuggers comes last of all, its large tables before what has
// nothing to do with it; what was appended to it is its own to read.
func TestWhatARunHardlyReads(t *testing.T) {
	const table, debug, archive = 5 << 20, 3 << 20, 1 << 20
	prog := compiled(t, t.TempDir(), "prog", `
		const char table[5<<20] = {1};
		int main(void) { return table[1]; }
		__asm__(".section .debug_all,\"\",@progbits\n.zero 3145728\n.text");`, "-Wl,-e,main", "-rdynamic")
	at := int64(bytes.Index(prog, make([]byte, table-4096))) / toc.PieceSize
	prog = append(prog, make([]byte, archive)...)
	tr := newTree(map[string]string{"aaa": "unrelated", "usr/share/doc/x": "cold", "var/www/html/index.html": "served"})
	tr.file("usr/bin/prog", prog, 0o755)
	order, hot, err := Order(t.Context(), tr.entries, Config{Cmd: []string{"prog"}}, tr, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if got := tr.paths(t, Config{Cmd: []string{"prog"}}); !slices.Equal(got, []string{"usr/bin/prog", "var/www/html/index.html", "aaa", "usr/share/doc/x"}) {
		t.Errorf("got %v", got)
	}
	count := func(items []Item) (n uint32) {
		for _, it := range items {
			if it.Object == uint32(tr.at("/usr/bin/prog").Object) {
				n += it.Pieces
			}
		}
		return n
	}
	// hot, the table, what has nothing to do with it, for debuggers
	if late := order[hot]; late.Pieces < table/toc.PieceSize-2 || int64(late.First) < at || int64(late.First) > at+1 {
		t.Errorf("got %+v in %v, want the table that begins in piece %d", late, order[hot:], at)
	}
	last := order[len(order)-1]
	if last.Pieces < debug/toc.PieceSize-1 || count(order[hot+1:]) != last.Pieces {
		t.Errorf("got %+v as the last of all, want what is for debuggers, and nothing more of the program in %v", last, order[hot+1:])
	}
	if end := last.First + last.Pieces; count(order) != uint32((len(prog)+toc.PieceSize-1)/toc.PieceSize) || count(order)-end < archive/toc.PieceSize {
		t.Errorf("got %d pieces, of which those before %d are for debuggers: want what was appended after them", count(order), end)
	}
}

// The manifest of an archive names others, beside it.
func TestClassPathOfAnArchive(t *testing.T) {
	archive := func(manifest string) string {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		w, err := z.Create("META-INF/MANIFEST.MF")
		if err == nil {
			_, err = io.WriteString(w, manifest)
		}
		if err := errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	tr := newTree(map[string]string{
		"usr/bin/java*": "j", "app/run.jar": archive("Main-Class: Main\r\nClass-Path: dep/a.jar dep/b\r\n .jar\r\n"),
		"app/dep/a.jar": archive("Class-Path: ../run.jar c.jar\n"), "app/dep/b.jar": "no archive", "app/dep/c.jar": "c", "app/dep/aaa.jar": "unrelated",
	})
	got := tr.paths(t, Config{Cmd: []string{"java", "-jar", "/app/run.jar"}})
	want := []string{"usr/bin/java", "app/run.jar", "app/dep/a.jar", "app/dep/c.jar", "app/dep/b.jar", "app/dep/aaa.jar"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Of the modules of a JDK come the index and what is behind it; of a large archive the
// directory at its end.
func TestLargeJava(t *testing.T) {
	modules := make([]byte, startModules+4*toc.PieceSize+1)
	for i, word := range []uint32{0xCAFEDADA, 1 << 16, 0, 10, 10, toc.PieceSize, toc.PieceSize} {
		binary.LittleEndian.PutUint32(modules[4*i:], word)
	}
	tr := newTree(map[string]string{"usr/lib/jvm/17/bin/java*": "j", "app/other": "x"})
	tr.file("usr/lib/jvm/17/lib/modules", modules, 0o644)
	tr.file("app/app.jar", make([]byte, 3*toc.PieceSize), 0o644)
	cfg := Config{Cmd: []string{"/usr/lib/jvm/17/bin/java", "-jar", "app.jar"}, WorkingDir: "/app"}
	order, hot, err := Order(t.Context(), tr.entries, cfg, tr, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	object := func(name string) uint32 { return uint32(tr.at("/" + name).Object) }
	first := uint32(startModules/toc.PieceSize + 3)
	for _, want := range []Item{{object("usr/lib/jvm/17/lib/modules"), 0, first}, {object("app/app.jar"), 2, 1}, {object("app/app.jar"), 0, 2}} {
		if i := slices.Index(order[:hot], want); i < 0 {
			t.Errorf("%+v is not in %+v", want, order[:hot])
		}
	}
	if i := slices.Index(order[hot:], Item{object("usr/lib/jvm/17/lib/modules"), first, 2}); i < 0 {
		t.Errorf("the other modules are not in %+v", order[hot:])
	}
	tr.paths(t, cfg) // all of it, once
}

// Native modules of the platform are optional dependencies, and no script has their names.
func TestNativeModulesOfAPackage(t *testing.T) {
	dir := t.TempDir()
	dep := compiled(t, dir, "libdep.so.1", "int dep(void) { return 1; }", "-shared", "-fPIC", "-Wl,-soname,libdep.so.1")
	mod := compiled(t, dir, "mod.node", "int dep(void); int mod(void) { return dep(); }", "-shared", "-fPIC", "-Wl,-rpath,$ORIGIN/../../c-lib/lib", "libdep.so.1")
	tr := newTree(map[string]string{
		"usr/local/bin/node*": "n", "app/server.js": "require('c')", "app/node_modules/c/index.js": "require(`@img/c-${process.platform}`)",
		"app/node_modules/c/package.json":            `{"optionalDependencies":{"@img/c-linux":"1","@img/c-darwin":"1"}}`,
		"app/node_modules/@img/c-linux/package.json": "{}", "app/node_modules/@img/c-linux/lib/notes.txt": "not needed", "aaa": "unrelated",
	})
	tr.file("app/node_modules/@img/c-linux/lib/mod.node", mod, 0o644)
	tr.file("app/node_modules/@img/c-lib/lib/libdep.so.1", dep, 0o644)
	got := tr.paths(t, Config{Cmd: []string{"node", "server.js"}, WorkingDir: "/app"})
	last := slices.Index(got, "app/node_modules/@img/c-linux/lib/notes.txt")
	for _, want := range []string{"package.json", "lib/mod.node", "../c-lib/lib/libdep.so.1"} {
		want = path.Join("app/node_modules/@img/c-linux", want)
		if i := slices.Index(got, want); i < 0 || i > last {
			t.Errorf("%s comes at %d, after what nothing speaks for (%d): %v", want, i, last, got)
		}
	}
}

// TestModulesOfAProgram: what configuration files make a program load comes with
// its libraries, before the files that nothing speaks for.
func TestModulesOfAProgram(t *testing.T) {
	dir := t.TempDir()
	compile := func(name, src string, args ...string) []byte {
		t.Helper()
		return compiled(t, dir, name, src, append([]string{"-shared", "-fPIC", "-Wl,-soname," + name}, args...)...)
	}
	dep := compile("libdep.so", "int dep(void) { return 1; }")
	mod := compile("mod.so", "int dep(void); int mod(void) { return dep(); }", "libdep.so")
	tr := newTree(map[string]string{
		"usr/sbin/served*": "no ELF, but a program", "etc/served/served.conf": "load mod", "aaa/other": "x", "docker-entrypoint.d/10-a.sh": "x=1",
	})
	tr.file("usr/lib/served/modules/mod.so", mod, 0o644)
	tr.file("usr/lib/libdep.so", dep, 0o644)
	got := tr.paths(t, Config{Cmd: []string{"/usr/sbin/served"}})
	last := slices.Index(got, "aaa/other")
	for _, want := range []string{"etc/served/served.conf", "usr/lib/served/modules/mod.so", "usr/lib/libdep.so", "docker-entrypoint.d/10-a.sh"} {
		if i := slices.Index(got, want); i < 0 || i > last {
			t.Errorf("%s comes at %d, after what nothing speaks for (%d): %v", want, i, last, got)
		}
	}
}

// Of modules, those come that the configuration names, if it names any.
func TestConfiguredModules(t *testing.T) {
	dir := t.TempDir()
	tr := newTree(map[string]string{
		"usr/sbin/served*": "no ELF, but a program", "aaa/other": "x",
		"etc/served/mods-available/used.load": "LoadModule used_module /usr/lib/served/used.so", "etc/served/mods-available/idle.load": "LoadModule idle_module /usr/lib/served/idle.so",
		"etc/served/mods-enabled/used.load": "-> ../mods-available/used.load",
	})
	for _, name := range []string{"used.so", "idle.so"} {
		tr.file("usr/lib/served/"+name, compiled(t, dir, name, "int f(void) { return 1; }", "-shared", "-fPIC"), 0o644)
	}
	order, hot, err := Order(t.Context(), tr.entries, Config{Cmd: []string{"served"}}, tr, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int {
		return slices.IndexFunc(order, func(it Item) bool { return it.Object == uint32(tr.at("/usr/lib/served/"+name).Object) })
	}
	if used, idle := at("used.so"), at("idle.so"); used >= hot || idle < hot {
		t.Errorf("got the module that is used at %d, the one that is not at %d; want the first among the %d that are hot", used, idle, hot)
	}
}
