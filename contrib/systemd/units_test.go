// Package systemd has the units of containerd and proxyd.
package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const systemUnits = "/usr/lib/systemd/system"

// systemd knows every key of the units, and every value.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	for _, c := range []struct{ name, unit, dropIn string }{
		{"containerd", "containerd.service", ""},
		{"containerd with the drop-in", "containerd.service", "containerd-starlight.conf"},
		{"proxyd", "proxyd.service", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			// What every unit depends on by default.
			for _, kind := range []string{"*.target", "*.slice", "*.socket"} {
				files, err := filepath.Glob(filepath.Join(systemUnits, kind))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					write(t, filepath.Join(root, f), read(t, f), 0o644)
				}
			}
			for _, program := range []string{"usr/local/bin/containerd", "usr/local/bin/proxyd", "sbin/modprobe"} {
				write(t, filepath.Join(root, program), []byte("#!/bin/sh\n"), 0o755)
			}
			etc := filepath.Join(root, "etc/systemd/system")
			write(t, filepath.Join(etc, c.unit), read(t, c.unit), 0o644)
			if c.dropIn != "" {
				write(t, filepath.Join(etc, c.unit+".d", c.dropIn), read(t, c.dropIn), 0o644)
			}
			// It succeeds in spite of what it does not know, and says so.
			out, err := exec.CommandContext(t.Context(), analyze, "--root="+root, "verify", c.unit).CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "" {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, file string, b []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, mode); err != nil {
		t.Fatal(err)
	}
}
