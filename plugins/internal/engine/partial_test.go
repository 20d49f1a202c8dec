package engine

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Each piece of a large object is sent once, however often the link breaks and the
// node is started anew meanwhile.
func TestPiecesAreSentOnce(t *testing.T) {
	const pieces = 24
	large := random(3, pieces*toc.PieceSize-5)
	p := newFakeProxy(t)
	img := newTestImage(t, files{"large": large})
	p.add(testRef, img)
	var n atomic.Int64
	stuck := make(chan struct{}, 1)
	p.pieceSent = func(r *http.Request) bool {
		i := n.Add(1)
		if i == 10 { // until the node goes
			stuck <- struct{}{}
			<-r.Context().Done()
			return false
		}
		return i%4 != 0 // the link breaks
	}
	root := t.TempDir()
	e := openEngine(t, root, p)
	pull(t, e, testRef)
	<-stuck
	for {
		if parts := e.objects.Partials(1); len(parts) == 1 && count(parts[0].Pieces) == 10 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	closeEngine(t, e, false)
	e = openEngine(t, root, p)
	wait(t, e, testRef)
	check(t, e, img)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes != int64(len(large)) {
		t.Errorf("%d bytes were sent of an object of %d", p.bytes, len(large))
	}
}

func count(bits []byte) (n int) {
	for _, b := range bits {
		for ; b != 0; b &= b - 1 {
			n++
		}
	}
	return n
}
