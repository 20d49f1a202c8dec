package toc

// Limits on what Decode accepts; over them it returns ErrInvalid.
const (
	MaxEntries    = 4 << 20  // entries in one layer
	MaxEncoded    = 1 << 30  // bytes of one encoded TOC, uncompressed
	MaxName       = 4096     // bytes in a name or link target
	MaxXattrValue = 64 << 10 // bytes in one xattr value
	MaxXattrs     = 256      // xattrs of one entry
	MaxObjectSize = 1 << 42  // bytes in one object
)
