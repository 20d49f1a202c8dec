package engine

import (
	"context"
	"sync"
	"time"
)

// patient is how long a request holds the gate while nothing is heard of its proxy. A
// live one answers or tells of its progress within wire.ProgressInterval; others must
// not wait for a dead one until its time is up.
const patient = 2 * time.Second

// passage is one request's stay behind the gate.
type passage struct {
	e     *Engine
	timer *time.Timer

	mu     sync.Mutex // guards the following
	stays  bool       // the timer is of no use any more
	inside bool
}

// enter acquires the gate for at most as long as it is patient.
func (e *Engine) enter(ctx context.Context) (*passage, error) {
	if err := e.lock(ctx); err != nil {
		return nil, err
	}
	p := &passage{e: e, inside: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(patient, p.tire)
	return p, nil
}

// tire is leave, unless p has come back meanwhile.
func (p *passage) tire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stays {
		p.open()
	}
}

func (p *passage) open() {
	if p.inside {
		p.inside = false
		p.e.unlock()
	}
}

// leave opens the gate for others, if p is inside.
func (p *passage) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	p.open()
}

// back makes sure that p is inside, and stays until it leaves.
func (p *passage) back(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	if p.stays = true; p.inside {
		return nil
	}
	if err := p.e.lock(ctx); err != nil {
		return err
	}
	p.inside = true
	return nil
}
