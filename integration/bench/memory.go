package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/sandbox"
)

// memoryResult is the largest resident memory of containerd and its FUSE process
// together while they pull.
type memoryResult struct {
	Image      string `json:"image"`
	ImageBytes int64  `json:"imageBytes"`
	Idle       int64  `json:"idleBytes"`
	Peak       int64  `json:"peakBytes"`
}

func (b *bench) memory(ctx context.Context, s *site) error {
	images, refs, err := s.push(ctx, diskImage)
	if err != nil {
		return err
	}
	n, err := s.StartNode(ctx, s.ours)
	if err != nil {
		return err
	}
	idle, err := together(n)
	if err != nil {
		return err
	}
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	var peak int64
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(20 * time.Millisecond)
		defer t.Stop()
		for {
			if m, err := together(n); err == nil {
				peak = max(peak, m)
			}
			select {
			case <-t.C:
			case <-watch.Done():
				return
			}
		}
	})
	if err := n.Pull(ctx, refs[0], "--snapshotter", "starlight"); err != nil {
		return err
	}
	if _, err := n.Ctr(ctx, "starlight", "wait", refs[0]); err != nil {
		return err
	}
	cancel()
	wg.Wait()
	b.res.Memory = &memoryResult{Image: diskImage, ImageBytes: images[0].Bytes, Idle: idle, Peak: peak}
	fmt.Printf("memory of containerd and its FUSE process: %.0f MB idle, at most %.0f MB while pulling %s (%.0f MB)\n",
		float64(idle)/1e6, float64(peak)/1e6, diskImage, float64(images[0].Bytes)/1e6)
	return n.Close()
}

// together is the resident memory of containerd and of its children that are
// containerd too; shims are not.
func together(n *sandbox.Node) (int64, error) {
	sum, err := process.RSS(n.PID())
	if err != nil {
		return 0, err
	}
	children, err := process.Children(n.PID())
	if err != nil {
		return 0, err
	}
	for _, pid := range children {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || strings.Contains(string(cmd), "shim") {
			continue // gone, or not ours
		}
		if m, err := process.RSS(pid); err == nil {
			sum += m
		}
	}
	return sum, nil
}
