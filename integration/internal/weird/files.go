package weird

import (
	"maps"
	"slices"
)

// Files is an image of plain files: a layer for each map from names to contents.
func Files(name string, layers ...map[string]string) Image {
	im := Image{Name: name}
	for _, files := range layers {
		im.layers = append(im.layers, func(l *layer) {
			l.root()
			for _, name := range slices.Sorted(maps.Keys(files)) {
				l.file(name, files[name])
			}
		})
	}
	return im
}
