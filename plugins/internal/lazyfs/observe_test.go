package lazyfs

import (
	"testing"
	"time"
)

// TestObserve: whoever observes hears of what is local and of what had to come,
// and of the time that a reader lost.
func TestObserve(t *testing.T) {
	r := &rig{TB: t, root: newRoot(t)}
	local, remote := contents(1, 5000), contents(2, 300)
	r.index("a", remote)
	r.arrive(local)
	seen := make(chan Access, 100)
	r.start(func(c *Config) { c.Observe = func(a Access) { seen <- a } })
	r.got(r.cat(local), local)
	waiting := r.reading(remote)
	r.arrive(remote)
	r.src.done(object(remote).Digest, nil)
	r.got(waiting, remote)

	opened, read := map[string]bool{}, map[string]int64{}
	waited := time.Duration(0)
	for read[object(remote).Digest.Hex()] < int64(len(remote)) || read[object(local).Digest.Hex()] < int64(len(local)) {
		select {
		case a := <-seen:
			if a.N == 0 {
				opened[a.Object.Hex()] = true
			}
			read[a.Object.Hex()] = max(read[a.Object.Hex()], a.Off+a.N)
			if a.Object == object(remote).Digest {
				waited += a.Wait
			} else if a.Wait != 0 {
				t.Errorf("a read of what is local waited %v", a.Wait)
			}
			if a.At.IsZero() {
				t.Error("an access without a time")
			}
		case <-t.Context().Done():
			t.Fatalf("saw the opening of %v and reads up to %v, want both objects", opened, read)
		}
	}
	if len(opened) != 2 || waited == 0 {
		t.Errorf("saw the opening of %v, and %v of waiting", opened, waited)
	}
}
