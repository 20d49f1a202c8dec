package toc

// Limits on what Decode accepts; over them it returns ErrInvalid.
const (
	MaxEntries    = 4 << 20  // entries in one layer
	MaxEncoded    = 1 << 30  // bytes of one encoded TOC, uncompressed
	MaxName       = 4096     // bytes in a name or link target
	MaxComponent  = 255      // bytes in one component of a name
	MaxXattrName  = 255      // bytes in one xattr name
	MaxXattrValue = 64 << 10 // bytes in one xattr value
	MaxXattrs     = 256      // xattrs of one entry
	MaxObjectSize = 1 << 42  // bytes in one object
)

// An encoded TOC is
//
//	magic "SLTC", version (1 byte), 3 zero bytes, DiffID (32 bytes),
//	number of entries (uvarint), number of objects (uvarint),
//	the columns below, each as its length in bytes (uvarint) and its bytes.
//
// Values that resemble each other stand together, so that zstd finds them, and
// everything that repeats is written once. The encoding of a TOC is unique:
// Encode has no choices.
//
// Manifests name TOCs by the digest of this (see Annotation). So the version is also
// that of what fromtar makes of a tar: where either gives other bytes, it is a new one.
const (
	magic   = "SLTC\x02\x00\x00\x00"
	version = 2
)

// The columns in their order. Numbers are uvarints; "per entry" columns have one
// value for each entry, in order.
const (
	colPrefix   = iota // per entry: bytes that its name shares with the name before
	colSuffix          // per entry: length of the rest of its name
	colNames           // the rests
	colTypes           // per entry: one byte
	colOwners          // distinct (mode, uid, gid), in order of first appearance
	colOwner           // per entry: index into colOwners
	colSeconds         // per entry: zigzag difference to the seconds before
	colNanos           // per entry
	colLink            // per symlink and hard link: length of the target
	colLinks           // the targets
	colDevices         // per device: major, minor
	colStrings         // distinct xattr names and values: length, bytes
	colXattrs          // distinct sets of xattrs: count, (name, value) as indices into colStrings
	colXattr           // per entry: 0 for none, or 1 + index into colXattrs
	colContents        // per TypeReg entry: 0 if empty, 1 for the next new object, 2 + index of an object seen before
	colSizes           // per object
	colDigests         // per object: 32 bytes
	colPieces          // per piece of an object that has more than one: 32 bytes
	columns
)

// Front coding lets a few bytes stand for a long name. nameBudget bounds the
// names of a TOC by what its encoding has at least: far above any real layer, and
// low enough that a small TOC cannot fill the memory of its reader.
const (
	minEntry   = 7 // bytes of one entry: colPrefix, colSuffix, colTypes, colOwner, colSeconds, colNanos, colXattr
	nameFactor = 64
	nameSlack  = 1 << 20
)

func nameBudget(entries, suffixes int) int {
	return nameFactor*(minEntry*entries+suffixes) + nameSlack
}
