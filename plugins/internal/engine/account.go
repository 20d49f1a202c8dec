package engine

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// Disk usage: an object that is in several chains counts for one of them, the lowest
// that has it in the image that was pulled first. So the usages of all chains add up
// to what is on the disk. The sums are kept as objects come.

// share is the chain that an object counts for, and what it counts: 0 if it is not
// local.
type share struct {
	chain *chain
	bytes int64
}

// own gives to the chains of img the objects that count for none. Engine.mu is held.
func (e *Engine) own(img *image) {
	if e.owners == nil {
		e.owners = map[toc.Digest]share{}
	}
	for i, l := range img.layers {
		if l.chain == nil {
			l.chain = img.chains[i]
		}
		for _, o := range l.objects {
			if e.owners[o.Digest].chain == nil {
				e.owners[o.Digest] = share{chain: img.chains[i]}
				e.count(o.Digest)
			}
		}
	}
}

// count counts d, once, if it is local. Engine.mu is held.
func (e *Engine) count(d toc.Digest) {
	s := e.owners[d]
	if s.chain == nil || s.bytes > 0 {
		return
	}
	if s.bytes = e.objects.Allocated(d); s.bytes == 0 && !e.objects.Has(d) {
		return
	}
	s.chain.size += s.bytes
	s.chain.files++
	s.bytes = max(s.bytes, 1) // a file of nothing but holes
	e.owners[d] = s
}

// account shares out all objects anew: some images have gone. Engine.mu is held.
func (e *Engine) account() {
	clear(e.owners)
	all := make([]*image, 0, len(e.images))
	for _, img := range e.images {
		all = append(all, img)
		for i, c := range img.chains {
			c.size, c.files = 0, 0
			img.layers[i].chain = nil
		}
	}
	slices.SortFunc(all, func(a, b *image) int {
		return cmp.Or(a.rec.Pulled.Compare(b.rec.Pulled), slices.Compare(a.digest[:], b.digest[:]))
	})
	for _, img := range all {
		e.own(img)
	}
}

// Usage is what a chain takes on the disk without what the chain below it, one of its
// own lower ones, or "", takes: bytes and inodes of the local objects that count for
// it, of its trees and TOCs.
func (e *Engine) Usage(_ context.Context, id, below digest.Digest) (size, inodes int64, err error) {
	e.mu.Lock()
	c := e.chains[id]
	if c == nil {
		e.mu.Unlock()
		return 0, 0, fmt.Errorf("chain %s: %w", id, errdefs.ErrNotFound)
	}
	var paths []string
	for _, img := range e.images {
		if img.top() == c {
			paths = append(paths, e.indexPath(img.digest))
		}
	}
	for ; c != nil && c.id != below; c = c.parent {
		size += c.size
		inodes += c.files
		paths = append(paths, e.treePath(c.id))
		if top := c.layers[len(c.layers)-1]; top.chain == c {
			paths = append(paths, e.tocPath(top.diffID))
		}
	}
	e.mu.Unlock()
	for _, path := range paths {
		if st, err := os.Stat(path); err == nil {
			size += (st.Size() + block - 1) / block * block
			inodes++
		}
	}
	return size, inodes, nil
}

// block is the size in which file systems allocate.
const block = 4096
