package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// answer runs a command line that is given an answer, and returns everything it does.
func answer(t *testing.T, in string, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	root := app(&stdout, &stderr)
	root.Reader = strings.NewReader(in)
	out := "$ ctr-starlight " + strings.Join(args, " ") + "\n"
	err := root.Run(t.Context(), append([]string{"ctr-starlight"}, args...))
	out += stdout.String()
	if stderr.Len() > 0 {
		out += "[stderr] " + stderr.String() + "\n"
	}
	if err != nil {
		out += "[error] " + err.Error() + "\n"
	}
	return out
}

func TestInstallAndUninstall(t *testing.T) {
	const text = "# mine\nversion = 3\n\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n"
	dir := t.TempDir()
	real := filepath.Join(dir, "real.toml")
	name := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(real, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.toml", name); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	args := []string{"install", "--config", name, "--proxy", "https://near", "--registry", "*.example", "--token-file", "/t", "--default-snapshotter", "--cri"}
	var got strings.Builder
	for _, in := range []string{"", "n\n"} {
		got.WriteString(answer(t, in, args...))
	}
	got.WriteString(answer(t, "", append(args, "--dry-run")...))
	if read() != text {
		t.Fatalf("it has been written: %s", read())
	}
	got.WriteString(answer(t, "yes\n", args...))
	installed := read()
	got.WriteString(answer(t, "", append(args, "--yes")...))
	st, err := os.Stat(real)
	if err != nil || st.Mode().Perm() != 0o640 || installed == text {
		t.Errorf("got mode %v, %v: %s", st.Mode(), err, installed)
	}
	if l, err := os.Lstat(name); err != nil || l.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link has become a file: %v", err)
	}
	if kept, err := filepath.Glob(real + ".*.bak"); err != nil || len(kept) != 1 {
		t.Errorf("got %q, %v, want one file as it was", kept, err)
	} else if b, err := os.ReadFile(kept[0]); err != nil || string(b) != text {
		t.Errorf("what was kept is %q, %v", b, err)
	}
	got.WriteString(answer(t, "y\n", "uninstall", "--config", name))
	if read() != text {
		t.Errorf("after uninstall: got %q, want %q", read(), text)
	}
	got.WriteString(answer(t, "", "uninstall", "--config", name, "--yes"))

	fresh := filepath.Join(dir, "new", "config-v3.toml.tmpl")
	got.WriteString(answer(t, "", "uninstall", "--config", fresh, "--yes"))
	got.WriteString(answer(t, "", "install", "--config", fresh, "--proxy", "http://near:1", "--yes"))
	got.WriteString(answer(t, "", "uninstall", "--config", fresh, "--yes"))
	if _, err := os.Stat(fresh); !os.IsNotExist(err) {
		t.Errorf("a file that was made is left: %v", err)
	}
	for _, wrong := range [][]string{
		nil, {"--proxy", "near:8090"}, {"--proxy", "http://a:b@near"}, {"--proxy", "http://near", "--ca", "/ca"}, {"--proxy", "https://near", "--ca", "ca"},
		{"--proxy", "https://near", "--key", "/k"}, {"--proxy", "http://near", "--registry", "["}, {"--proxy", "http://near", "extra"},
	} {
		got.WriteString(answer(t, "", append([]string{"install", "--config", name}, wrong...)...))
	}
	text2 := strings.NewReplacer(dir, "DIR").Replace(got.String())
	lines := strings.SplitAfter(text2, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "the file as it was is ") {
			lines[i] = "the file as it was is BACKUP\n"
		}
	}
	golden(t, "install", strings.Join(lines, ""))
}

// TestResetDirectory: what is not the snapshotter's stays, and so does all of it while
// anything runs from it.
func TestResetDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	reset := func(flags ...string) string {
		return answer(t, "", append([]string{"--address", filepath.Join(dir, "gone"), "reset", "--root", root}, flags...)...)
	}
	if out := reset("--yes"); !strings.Contains(out, "--root names another one") {
		t.Errorf("without a directory: %s", out)
	}
	for _, d := range []string{"lazy", "objects", "toc", "trees", "snapshots/1/merged"} {
		if out := reset("--yes"); d != "lazy" && !strings.Contains(out, "nothing is removed") {
			t.Errorf("before it has %s: %s", d, out)
		}
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged, elsewhere := filepath.Join(root, "snapshots/1/merged"), filepath.Join(dir, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{filepath.Join(root, "lazy"), merged} {
		if err := unix.Mount("tmpfs", m, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(m, unix.MNT_DETACH) })
	}
	if err := unix.Mount(merged, elsewhere, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(elsewhere, unix.MNT_DETACH) })
	if out := reset("--yes"); !strings.Contains(out, elsewhere+", of process") {
		t.Errorf("while it is used: %s", out)
	}
	if err := unix.Unmount(elsewhere, 0); err != nil {
		t.Fatal(err)
	}
	if out := reset("--dry-run"); !strings.Contains(out, "unmount "+merged) || strings.Contains(out, "error") {
		t.Errorf("dry run: %s", out)
	}
	if out := reset(); !strings.Contains(out, "not confirmed") {
		t.Errorf("without an answer: %s", out)
	}
	if _, err := os.Stat(filepath.Join(root, "objects")); err != nil {
		t.Fatal(err)
	}
	if out := reset("--yes"); strings.Contains(out, "error") || !strings.Contains(out, "removed") {
		t.Errorf("got %s", out)
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
}
