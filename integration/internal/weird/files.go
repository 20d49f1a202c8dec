package weird

import (
	"maps"
	"slices"
)

// Files is an image of plain files: a layer for each map from names to contents.
func Files(name string, layers ...map[string]string) Image {
	im := Image{Name: name}
	for _, files := range layers {
		im.layers = append(im.layers, plainFiles(files))
	}
	return im
}

// And returns the image as an index, with layers of plain files for another architecture.
func (im Image) And(arch string, layers ...map[string]string) Image {
	im.others = maps.Clone(im.others)
	if im.others == nil {
		im.others = map[string][]func(*layer){}
	}
	for _, files := range layers {
		im.others[arch] = append(im.others[arch], plainFiles(files))
	}
	return im
}

func plainFiles(files map[string]string) func(*layer) {
	return func(l *layer) {
		l.root()
		for _, name := range slices.Sorted(maps.Keys(files)) {
			l.file(name, files[name])
		}
	}
}
