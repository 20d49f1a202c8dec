package tools

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Stargz returns the snapshotter and the converter of eStargz, building them from
// the module beside this file if they are not there.
func Stargz(ctx context.Context) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return cached(ctx, "stargz", "stargz", func(dir string) *exec.Cmd {
		c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir, ".")
		c.Dir = filepath.Join(root, "integration", "internal", "tools", "stargz")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		return c
	})
}

// MkfsErofs returns a directory with a mkfs.erofs that reads tar files, as
// containerd's EROFS snapshotter wants it, or "" if the machine's own does. Debian
// 12 has an older one: that of Debian 13 is unpacked with its libraries, and not
// installed.
func MkfsErofs(ctx context.Context) (string, error) {
	if out, _ := exec.CommandContext(ctx, "mkfs.erofs", "--help").CombinedOutput(); bytes.Contains(out, []byte("--tar=")) {
		return "", nil
	}
	path, err := cached(ctx, "erofs-utils-trixie", "mkfs.erofs", func(dir string) *exec.Cmd {
		// The script that takes the program's place ends up one directory higher.
		const script = `rm -rf "$1/../trixie" && mmdebstrap --quiet --variant=extract --include=erofs-utils trixie "$1/../trixie" >&2 &&
			printf '#!/bin/sh\nL=%s/usr/lib/x86_64-linux-gnu\nexec $L/ld-linux-x86-64.so.2 --library-path $L %s/usr/bin/mkfs.erofs "$@"\n' \
				"$(realpath "$1/../trixie")" "$(realpath "$1/../trixie")" >"$1/mkfs.erofs" && chmod +x "$1/mkfs.erofs"`
		return exec.CommandContext(ctx, "sh", "-c", script, "sh", dir)
	})
	if err != nil {
		return "", fmt.Errorf("get a mkfs.erofs that reads tar files: %w", err)
	}
	return filepath.Dir(path), nil
}
