package measure

import (
	"cmp"
	"slices"
	"time"

	"github.com/starlight-delta/starlight/integration/internal/process"
	"github.com/starlight-delta/starlight/integration/internal/system"
)

// Process is what one of the processes of a system used.
type Process struct {
	Name string `json:"name"`
	// CPU are seconds of processor time, of children that have ended too.
	CPU float64 `json:"cpuSeconds"`
	// Peak is the largest resident memory.
	Peak int64 `json:"peakBytes"`
}

// usage of processes from a moment on.
type usage struct {
	node   *system.Node
	before map[int]time.Duration
}

func newUsage(n *system.Node) (*usage, error) {
	u := &usage{node: n, before: make(map[int]time.Duration)}
	all, err := n.Processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range all {
		if u.before[pid], err = process.CPU(pid); err != nil {
			return nil, err
		}
		if err := process.ResetPeak(pid); err != nil {
			return nil, err
		}
	}
	return u, nil
}

func (u *usage) since() ([]Process, error) {
	all, err := u.node.Processes() // some may be new
	if err != nil {
		return nil, err
	}
	var used []Process
	for name, pid := range all {
		cpu, err := process.CPU(pid)
		if err != nil {
			return nil, err
		}
		peak, err := process.PeakRSS(pid)
		if err != nil {
			return nil, err
		}
		used = append(used, Process{name, (cpu - u.before[pid]).Seconds(), peak})
	}
	slices.SortFunc(used, func(a, b Process) int { return cmp.Compare(a.Name, b.Name) })
	return used, nil
}
