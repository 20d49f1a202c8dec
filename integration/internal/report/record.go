// Package report keeps the figures of a benchmark as JSON lines, and makes tables
// and plots of them.
package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/measure"
	"github.com/starlight-delta/starlight/integration/internal/needs"
)

// Phases of an image: its first version on an empty node, and the second on a node
// that has the first.
const (
	Fresh  = "fresh"
	Update = "update"
)

// Phases in the order of the versions.
var Phases = []string{Fresh, Update}

// Link is the profile of a link.
type Link struct {
	Mbit float64 `json:"mbit"`
	RTT  float64 `json:"rttSeconds"`
}

// String is how tables name it.
func (l Link) String() string {
	return fmt.Sprintf("%s, %v", rate(l.Mbit), time.Duration(l.RTT*float64(time.Second)))
}

func rate(mbit float64) string {
	const giga = 1000
	if mbit >= giga {
		return fmt.Sprintf("%g Gbit/s", mbit/giga)
	}
	return fmt.Sprintf("%g Mbit/s", mbit)
}

// Record is one line: a figure, or what kept it from being measured.
type Record struct {
	Time time.Time `json:"time"`
	// What was measured.
	Image  string `json:"image,omitempty"`
	Phase  string `json:"phase,omitempty"`
	System string `json:"system,omitempty"`
	Link   *Link  `json:"link,omitempty"`
	Run    int    `json:"run,omitempty"`
	// One of these is set.
	Environment *Environment   `json:"environment,omitempty"`
	Start       *measure.Start `json:"start,omitempty"`
	Bytes       *Bytes         `json:"bytes,omitempty"`
	Needs       *needs.Start   `json:"needs,omitempty"`
	Disk        *Disk          `json:"disk,omitempty"`
	Error       string         `json:"error,omitempty"`
}

// Environment says where the figures after it are from.
type Environment struct {
	Command    string `json:"command"`
	Version    string `json:"version"`
	Kernel     string `json:"kernel"`
	Processors int    `json:"processors"`
}

// Bytes that a pull makes go over the link, by who sends what.
type Bytes struct {
	Files int `json:"files"` // regular files of the version
	// Registry are the layers, as they are, that the node lacks.
	Registry int64 `json:"registry"`
	// Dedup are the contents that the node lacks, each with gzip -9 alone, which is
	// what the first Starlight sent; without any metadata.
	Dedup int64 `json:"dedup"`
	// AtOnce is what proxyd sends when it is asked for the first time over a link of 100
	// Mbit/s, Slow over one of 10 Mbit/s (an update only), Precomputed when it had time
	// since.
	AtOnce      Sent `json:"atOnce"`
	Slow        Sent `json:"slow,omitzero"`
	Precomputed Sent `json:"precomputed"`
}

// Sent by proxyd.
type Sent struct {
	Header int64 `json:"header"` // all but the contents: names, attributes, digests, framing
	Data   int64 `json:"data"`
}

// Total of both.
func (s Sent) Total() int64 { return s.Header + s.Data }

// Disk is one operation on a complete image through two snapshotters.
type Disk struct {
	Operation string  `json:"operation"`
	Cold      bool    `json:"cold"`
	Overlayfs float64 `json:"overlayfsSeconds"`
	Starlight float64 `json:"starlightSeconds"`
}

// Name of the file with the records.
const Name = "results.jsonl"

// Log is a file that records are appended to. It is safe for concurrent use.
type Log struct {
	mu  sync.Mutex // guards: enc
	enc *json.Encoder
	f   *os.File
}

// Append opens the log of a directory.
func Append(dir string) (*Log, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	return &Log{f: f, enc: json.NewEncoder(f)}, nil
}

// Add appends a record.
func (l *Log) Add(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Time = time.Now()
	return l.enc.Encode(r)
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }

// Load reads the records of a directory; there may be none.
func Load(dir string) ([]Record, error) {
	f, err := os.Open(filepath.Join(dir, Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Record
	d := json.NewDecoder(bufio.NewReader(f))
	for {
		var r Record
		err := d.Decode(&r)
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return all, nil // the last line of a run that was killed
		case err != nil:
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		all = append(all, r)
	}
}
