package weird

import "slices"

// Userland is an index of a Linux that is one static busybox with its applets, what else
// containerd's own tests look for, and a layer more for each map from names to contents.
// For other architectures it has manifests with a small layer that nobody can run.
func Userland(name string, busybox []byte, applets, others []string, layers ...map[string]string) Image {
	im := Files(name, layers...)
	im.others = make(map[string][]func(*layer))
	for _, arch := range others {
		im.others[arch] = []func(*layer){func(l *layer) { l.file("architecture", name+" for "+arch) }}
	}
	im.layers = slices.Insert(im.layers, 0, func(l *layer) {
		l.root()
		for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin"} {
			l.dir(dir)
		}
		l.file("bin/busybox", string(busybox), mode(0o755))
		for _, a := range applets {
			if a != "busybox" {
				l.symlink("bin/"+a, "busybox")
			}
		}
		l.file("bin/bash", "#!/bin/sh\nexec /bin/sh \"$@\"\n", mode(0o755))
		l.file("usr/bin/passwd", "", mode(0o4755))
		l.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsys:x:3:3:sys:/:/bin/false\nwww-data:x:33:33:www:/:/bin/false\n")
		l.file("etc/group", "root:x:0:\nsys:x:3:\nwww-data:x:33:\n")
	})
	return im
}
