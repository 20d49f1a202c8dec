package erofsimg

import (
	"os/exec"
	"testing"
)

// fsck has the image checked by erofs-utils, where installed.
func fsck(t testing.TB, image string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		return
	}
	if out, err := exec.Command(tool, image).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}
