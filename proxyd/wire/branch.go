package wire

import (
	"encoding/binary"

	"github.com/starlight-delta/starlight/proxyd/wire/toc"
)

// A call of one function from many places has as many different operands, for
// machines count from the instruction on. With the operands counted from the start
// of the object, the calls look alike, and compress.

// Filter replaces in b, which is a piece of an object of the given size, the
// operands of branches by their targets. kind is [KindX86] or [KindARM64].
func Filter(kind Kind, b []byte, piece uint32, size int64) { branches(kind, b, piece, size, 1) }

// Unfilter is the inverse of [Filter].
func Unfilter(kind Kind, b []byte, piece uint32, size int64) { branches(kind, b, piece, size, -1) }

func branches(kind Kind, b []byte, piece uint32, size int64, sign int64) {
	at := int64(piece) * toc.PieceSize
	switch kind {
	case KindX86:
		x86(b, at, size, sign)
	case KindARM64:
		arm64(b, at, sign)
	}
}

// x86 changes the operands of call and jmp rel32 (E8, E9) that lead into the object.
// The operands in [-pos, size-pos), which become [0, size), and those in
// [size-pos, size), which take the place of the former, map onto each other, so that
// whatever is not a branch comes back, too. Operands are never looked into for
// opcodes: both directions see the same ones.
func x86(b []byte, at, size, sign int64) {
	const operand = 4
	if size > 1<<31-1 {
		return
	}
	for i := 0; i+operand < len(b); i++ {
		if b[i]&0xfe != 0xe8 {
			continue
		}
		i++
		pos := at + int64(i) + operand
		v := int64(int32(binary.LittleEndian.Uint32(b[i:])))
		if -pos <= v && v < size {
			switch {
			case sign > 0 && v < size-pos:
				v += pos
			case sign > 0:
				v -= size
			case v >= 0:
				v -= pos
			default:
				v += size
			}
			binary.LittleEndian.PutUint32(b[i:], uint32(int32(v)))
		}
		i += operand - 1
	}
}

// arm64 changes the operands of bl.
func arm64(b []byte, at, sign int64) {
	const (
		opcode  = 0x94000000
		operand = 1<<26 - 1
	)
	for i := 0; i+4 <= len(b); i += 4 {
		v := binary.LittleEndian.Uint32(b[i:])
		if v&^operand == opcode {
			v = opcode | (v+uint32(sign*((at+int64(i))/4)))&operand
			binary.LittleEndian.PutUint32(b[i:], v)
		}
	}
}
