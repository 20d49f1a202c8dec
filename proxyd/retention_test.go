package main

import (
	"context"
	"database/sql"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/starlight-delta/starlight/proxyd/wire"
)

// Layers that were of no use for long make room, with what was made of them. Who asks for
// such an image gets it all the same, and those that are of use stay.
func TestStorageIsBounded(t *testing.T) {
	reg := startRegistry(t, false)
	dir := filepath.Join(t.TempDir(), "data")
	p := startProxyd(t, "", "--data-dir", dir)
	shared := someFiles(1, 2000)
	one := reg.push(t, "lib/app", "1", shared, someFiles(2, 500))
	two := reg.push(t, "lib/app", "2", shared, someFiles(3, 500))
	for _, img := range []*testImage{one, two} {
		p.pull(t, wire.DeltaRequest{Ref: img.ref, Platform: platform, Kinds: wire.FilterKinds}).check(t, img.files)
	}
	waitFor(t, func() bool { return countBlobs(t, dir, "frames") == 2 })
	stop(t, p)
	if n := countBlobs(t, dir, "pack"); n != 3 {
		t.Fatalf("got %d packs, want 3", n)
	}
	// A day goes by, in which there is nothing but pulls of the second image.
	change(t, dir, `UPDATE layers SET used = used - 86400000000 WHERE diff_id NOT IN
		(SELECT diff_id FROM image_layers WHERE manifest = $1)`, two.manifest[:])

	p = startProxyd(t, "[storage]\nbytes = 1\nkeep_for = \"1h\"\n", "--data-dir", dir)
	waitFor(t, func() bool { return countBlobs(t, dir, "pack") == 2 })
	waitFor(t, func() bool { return countBlobs(t, dir, "frames") == 1 })
	kept := p.pull(t, wire.DeltaRequest{Ref: two.ref, Platform: platform})
	kept.check(t, two.files)
	if kept.progress != 0 {
		t.Error("the image that was of use was ingested again")
	}
	again := p.pull(t, wire.DeltaRequest{Ref: one.ref, Platform: platform, Kinds: wire.FilterKinds})
	again.check(t, one.files)
	if again.progress == 0 {
		t.Error("the image that had been removed was not ingested again")
	}
	waitFor(t, func() bool { return countBlobs(t, dir, "frames") == 2 })
	stop(t, p)

	// What a worker has counts as well as what it wants.
	change(t, dir, `UPDATE layers SET used = 1`)
	p = startProxyd(t, "", "--data-dir", dir)
	var have []wire.Have
	for _, l := range again.header.Layers {
		have = append(have, wire.Have{DiffID: l.DiffID})
	}
	p.pull(t, wire.DeltaRequest{Ref: two.ref, Platform: platform, Have: have}, again)
	stop(t, p)
	if n := count(t, dir, `SELECT COUNT(*) FROM layers WHERE used > 1`); n != 3 {
		t.Errorf("got %d layers of use, want those of both images (3)", n)
	}
}

func stop(t *testing.T, p *testProxyd) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// countBlobs counts the blobs of a kind.
func countBlobs(t *testing.T, dir, kind string) (n int) {
	t.Helper()
	// What is deleted meanwhile is not counted.
	_ = filepath.WalkDir(filepath.Join(dir, "blobs", kind), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") {
			n++
		}
		return nil
	})
	return n
}

func database(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "proxyd.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func change(t *testing.T, dir, query string, args ...any) {
	t.Helper()
	if _, err := database(t, dir).ExecContext(context.Background(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, dir, query string) (n int) {
	t.Helper()
	if err := database(t, dir).QueryRowContext(context.Background(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
