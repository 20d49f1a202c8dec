// Package corpus gives the images that integration/corpus/build makes.
package corpus

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/integration/internal/tools"
)

// Ready tells when an application is of use to somebody.
type Ready struct {
	Kind    string   `json:"kind"`    // log, tcp, http or exit
	Pattern string   `json:"pattern"` // log: a line matches
	Port    int      `json:"port"`    // tcp and http
	Path    string   `json:"path"`    // http
	Body    string   `json:"body"`    // http: the body matches
	Argv    []string `json:"argv"`    // in place of entrypoint and cmd
	Timeout int      `json:"timeout_s"`
}

// Deadline is how long to wait for it.
func (r Ready) Deadline() time.Duration {
	if r.Timeout == 0 {
		return time.Minute
	}
	return time.Duration(r.Timeout) * time.Second
}

// Image is one version of one image.
type Image struct {
	Name  string `json:"name"`
	Tag   string `json:"tag"`
	Quick bool   `json:"quick"`
	// Manifest is its digest.
	Manifest digest.Digest `json:"manifest"`
	Files    int           `json:"files"`
	Bytes    int64         `json:"bytes"`      // of all files of all layers
	Gzip     int64         `json:"gzip_bytes"` // of all layers, compressed
	Ready    Ready         `json:"ready"`
	// Layout is the directory of its OCI image layout.
	Layout string `json:"-"`
}

// Names of the images, those that Quick builds first.
var (
	QuickNames = []string{"redis", "express", "tinyhttp"}
	AllNames   = append(slices.Clip(QuickNames), "nginx", "webapp", "python", "golang", "postgres", "tomcat", "caddy",
		"registry", "memcached", "httpd", "haproxy", "php", "ruby", "redis-upgrade", "webapp-upgrade")
	Tags = []string{"v1", "v2"}
)

// Dir is where the corpus is kept.
func Dir() (string, error) {
	if d := os.Getenv("STARLIGHT_CORPUS"); d != "" {
		return d, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".cache", "starlight", "corpus"), err
}

// Load returns an image that is built.
func Load(name, tag string) (Image, error) {
	dir, err := Dir()
	if err != nil {
		return Image{}, err
	}
	layout := filepath.Join(dir, "images", name, tag)
	b, err := os.ReadFile(filepath.Join(layout, "corpus.json"))
	if err != nil {
		return Image{}, err
	}
	im := Image{Layout: layout}
	if err := json.Unmarshal(b, &im); err != nil {
		return Image{}, fmt.Errorf("%s:%s: %w", name, tag, err)
	}
	return im, nil
}

// Build builds all versions of the named images that are not there yet, and tells
// progress what it does.
func Build(ctx context.Context, progress io.Writer, names ...string) error {
	missing := false
	for _, n := range names {
		for _, t := range Tags {
			if _, err := Load(n, t); err != nil {
				missing = true
			}
		}
	}
	if !missing {
		return nil
	}
	root, err := tools.Root()
	if err != nil {
		return err
	}
	dir, err := Dir()
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, filepath.Join(root, "integration", "corpus", "build"), append([]string{"--dir", dir}, names...)...)
	c.Stdout, c.Stderr = progress, progress
	if err := c.Run(); err != nil {
		return fmt.Errorf("build corpus: %w", err)
	}
	return nil
}
