package toc

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// maxLinks is the number of symlinks that containerd follows in one path
// (continuity/fs.RootPath), maxLinksKernel that of the kernel (MAXSYMLINKS).
const (
	maxLinks       = 255
	maxLinksKernel = 40
)

// errNotExist stands for ENOENT. It does not leave the package.
var errNotExist = errors.New("no such file or directory")

// resolve returns the path below root that p leads to with all its symlinks
// followed inside root, and what is there, nil if nothing. The path begins with
// a slash. Elements that do not exist stand for themselves.
//
// p is clean and relative.
func (b *budget) resolve(root *dirent, p string) (string, *dirent, error) {
	at := root
	for rest := p; rest != ""; {
		if err := b.step(); err != nil {
			return "", nil, err
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if at.Type != TypeDir {
			return "", nil, fmt.Errorf("%q goes through a file: %w", p, ErrInvalid)
		}
		if len(name) > maxBase {
			return "", nil, fmt.Errorf("%q has an element longer than %d: %w", p, maxBase, ErrInvalid)
		}
		if at = at.children[name]; at == nil {
			break
		}
		if at.Type == TypeSymlink {
			return b.follow(root, p)
		}
	}
	p = "/" + p
	if len(p) > maxPath {
		return "", nil, fmt.Errorf("path %.80q... is longer than %d: %w", p, maxPath, ErrInvalid)
	}
	return p, at, nil
}

// follow is resolve for paths with symlinks in them. It goes through the path
// again and again, replacing symlinks by their targets, until there are none.
// Dots are taken away lexically as containerd does it: where ".." comes after
// another symlink the result is not that of the kernel.
func (b *budget) follow(root *dirent, p string) (string, *dirent, error) {
	links := 0
	for {
		before := links
		next, err := b.replaceLinks(root, p, &links)
		if err != nil {
			return "", nil, err
		}
		if before == links {
			next = path.Join("/", next)
			if p == next {
				at, err := b.lstat(root, p)
				if err != nil && !errors.Is(err, errNotExist) {
					return "", nil, err
				}
				return p, at, nil
			}
		}
		p = next
	}
}

// replaceLinks replaces each element of p that is a symlink by its target.
func (b *budget) replaceLinks(root *dirent, p string, links *int) (string, error) {
	var (
		at    string
		first = true // the first element of a relative path
	)
	if strings.HasPrefix(p, "/") {
		at, first = "/", false
	}
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" {
			continue
		}
		to, isLink, err := b.readlink(root, path.Join(at, name), links)
		switch {
		case err != nil:
			return "", err
		case first || !isLink || strings.HasPrefix(to, "/"):
			at = to
		default:
			at = path.Join(at, to)
		}
		first = false
	}
	return at, nil
}

// readlink returns the target of p if it is a symlink, or else the clean
// absolute p.
func (b *budget) readlink(root *dirent, p string, links *int) (to string, isLink bool, err error) {
	if *links > maxLinks {
		return "", false, fmt.Errorf("%q: too many symlinks: %w", p, ErrInvalid)
	}
	p = path.Join("/", p)
	if p == "/" {
		return p, false, nil
	}
	d, err := b.lstat(root, p)
	switch {
	case errors.Is(err, errNotExist):
		return p, false, nil
	case err != nil:
		return "", false, err
	case d.Type != TypeSymlink:
		return p, false, nil
	}
	*links++
	return d.Link, true, nil
}

// lstat is lstat(2) of p below root as the kernel does it. What lies outside
// root, on the machine that unpacks, does not exist.
func (b *budget) lstat(root *dirent, p string) (*dirent, error) {
	if len(p) > maxPath {
		return nil, fmt.Errorf("path %.80q... is longer than %d: %w", p, maxPath, ErrInvalid)
	}
	var (
		at    = []*dirent{root}
		links = 0
	)
	for rest := p; rest != ""; {
		if err := b.step(); err != nil {
			return nil, err
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		dir := at[len(at)-1]
		if dir.Type != TypeDir {
			return nil, fmt.Errorf("%q goes through a file: %w", p, ErrInvalid)
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if len(at) == 1 {
				return nil, errNotExist
			}
			at = at[:len(at)-1]
			continue
		}
		if len(name) > maxBase {
			return nil, fmt.Errorf("%q has an element longer than %d: %w", p, maxBase, ErrInvalid)
		}
		d := dir.children[name]
		switch {
		case d == nil:
			return nil, errNotExist
		case d.Type != TypeSymlink || rest == "":
			at = append(at, d)
		case strings.HasPrefix(d.Link, "/"):
			return nil, errNotExist
		default:
			if links++; links > maxLinksKernel {
				return nil, fmt.Errorf("%q: too many symlinks: %w", p, ErrInvalid)
			}
			rest = d.Link + "/" + rest
		}
	}
	return at[len(at)-1], nil
}
