package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConvertUsage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("CTR_STARLIGHT_USER", "")
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte("no JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got string
	for _, args := range [][]string{
		{"a.example/b:1"},
		{"--format", "zip", "a.example/b:1", "a.example/b:2"},
		{"--platform", "a/b/c/d", "a.example/b:1", "a.example/b:2"},
		{"a.example/b", "a.example/b:2"},
		{"A.example/B:1", "a.example/b:2"},
		{"a.example/b:1", "a.example/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{"a.example/b:1", "a.example/b:2"}, // the configuration of docker
	} {
		got += execute(t.Context(), "/nonexistent", append([]string{"convert"}, args...)...) + "\n"
	}
	golden(t, "convert", strings.ReplaceAll(got, dir, "DIR"))
}

func TestParseImage(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for s, want := range map[string]imageName{
		"redis:7":                    {"docker.io", "library/redis", "7", ""},
		"host:5000/a/b:1":            {"host:5000", "a/b", "1", ""},
		"host.example/a@" + digest:   {"host.example", "a", "", digest},
		"host.example/a:1@" + digest: {"host.example", "a", "1", digest},
		"localhost/a/b/c:latest":     {"localhost", "a/b/c", "latest", ""},
	} {
		if got, err := parseImage(s); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", s, got, err, want)
		}
	}
}
