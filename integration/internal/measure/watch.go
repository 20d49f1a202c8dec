package measure

import (
	"time"

	"github.com/starlight-delta/starlight/integration/internal/wan"
)

const (
	sampleEvery = 50 * time.Millisecond
	reportEvery = 200 * time.Millisecond
	mostPoints  = 1000
)

// watch samples the link while a start goes on, and reports on it.
type watch struct {
	start time.Time
	names chan string
	done  chan struct{}
	curve []Point // the goroutine's until done is closed
}

func newWatch(l *wan.Link, report func(Stage)) *watch {
	w := &watch{start: time.Now(), names: make(chan string), done: make(chan struct{})}
	go w.run(l, report)
	return w
}

func (w *watch) run(l *wan.Link, report func(Stage)) {
	defer close(w.done)
	t := time.NewTicker(sampleEvery)
	defer t.Stop()
	name, open := "", true
	var reported time.Time
	for open {
		select {
		case name, open = <-w.names:
		case <-t.C:
		}
		c, err := l.Counters()
		if err != nil {
			continue // the measurement itself fails on it
		}
		w.add(c.Down.Bytes)
		if report != nil && name != "" && time.Since(reported) >= reportEvery {
			reported = time.Now()
			report(Stage{name, c.Down.Bytes, time.Since(w.start)})
		}
	}
}

// add appends a point. Of a long curve every other point goes when it is full, so
// that all of it has the same density in the end.
func (w *watch) add(bytes int64) {
	if n := len(w.curve); n >= 2 && w.curve[n-1].Bytes == bytes && w.curve[n-2].Bytes == bytes {
		w.curve[n-1].At = w.seconds() // a level stretch needs its two ends only
		return
	}
	w.curve = append(w.curve, Point{w.seconds(), bytes})
	if len(w.curve) < mostPoints {
		return
	}
	for i := range mostPoints / 2 {
		w.curve[i] = w.curve[2*i+1]
	}
	w.curve = w.curve[:mostPoints/2]
}

func (w *watch) seconds() float64 { return time.Since(w.start).Seconds() }

func (w *watch) stage(name string) { w.names <- name }

// stop ends the watch and returns the curve; further calls do nothing.
func (w *watch) stop() []Point {
	select {
	case <-w.done:
	default:
		close(w.names)
		<-w.done
	}
	return w.curve
}
