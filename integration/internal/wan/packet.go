package wan

import "encoding/binary"

const (
	vnetLen    = 10 // struct virtio_net_hdr
	needsCsum  = 1  // its flag VIRTIO_NET_HDR_F_NEEDS_CSUM
	protoTCP   = 6
	protoUDP   = 17
	flagFINPSH = 0x09
	flagCWR    = 0x80
	maskSYNACK = 0x12
	flagSYN    = 0x02
	csumOffset = 16 // of the checksum in the TCP header
	minIPv4    = 20
	minTCP     = 20
)

// packet classifies one packet as the TUN device gives it and admits it, cut into
// pieces if it is a large one of segmentation offload.
func (d *direction) packet(p *params, t int64, b []byte) {
	pkt := b[vnetLen:]
	if len(pkt) < minIPv4 || pkt[0]>>4 != 4 { // only IPv4 is looked into
		d.admit(p, t, b, len(pkt), 1, 0, false)
		return
	}
	ihl := int(pkt[0]&15) * 4
	if pkt[9] != protoTCP || len(pkt) < ihl+minTCP {
		payload := 0
		if pkt[9] == protoUDP {
			payload = max(0, len(pkt)-ihl-8)
		}
		d.admit(p, t, b, len(pkt), 1, payload, false)
		return
	}
	hl := ihl + int(pkt[ihl+12]>>4)*4
	payload := len(pkt) - hl
	syn := pkt[ihl+13]&maskSYNACK == flagSYN
	gso := int(binary.LittleEndian.Uint16(b[4:]))
	if b[1]&0x7f == 0 || gso == 0 || payload <= gso {
		d.admit(p, t, b, len(pkt), 1, payload, syn)
		return
	}
	piece := p.chunk / gso * gso
	if piece < gso || p.loss > 0 { // losses are per packet of the wire
		piece = gso
	}
	if payload <= piece {
		segs := (payload + gso - 1) / gso
		d.admit(p, t, b, payload+segs*hl, segs, payload, syn)
		return
	}
	d.split(p, t, b, splitting{ihl: ihl, hl: hl, gso: gso, piece: piece})
}

// splitting tells how to cut a TCP packet: length of the IP header, of all headers,
// of a segment, and of a piece (a multiple of segments).
type splitting struct{ ihl, hl, gso, piece int }

func (d *direction) split(p *params, t int64, b []byte, s splitting) {
	pkt := b[vnetLen:]
	payload := len(pkt) - s.hl
	seq := binary.BigEndian.Uint32(pkt[s.ihl+4:])
	id := binary.BigEndian.Uint16(pkt[4:])
	flags := pkt[s.ihl+13]
	pseudo := sum(pkt[12:20], protoTCP)
	for off := 0; off < payload; off += s.piece {
		n := min(s.piece, payload-off)
		o := d.cut[:vnetLen+s.hl+n]
		copy(o, b[:vnetLen+s.hl])
		copy(o[vnetLen+s.hl:], pkt[s.hl+off:s.hl+off+n])
		segs := (n + s.gso - 1) / s.gso
		if segs == 1 { // no offload left
			clear(o[1:6])
		}
		o[0] = needsCsum
		binary.LittleEndian.PutUint16(o[6:], uint16(s.ihl))
		binary.LittleEndian.PutUint16(o[8:], csumOffset)
		ip := o[vnetLen:]
		binary.BigEndian.PutUint16(ip[2:], uint16(s.hl+n))
		binary.BigEndian.PutUint16(ip[4:], id+uint16(off/s.gso))
		clear(ip[10:12])
		binary.BigEndian.PutUint16(ip[10:], ^fold(sum(ip[:s.ihl], 0)))
		binary.BigEndian.PutUint32(ip[s.ihl+4:], seq+uint32(off))
		f := flags
		if off+n < payload {
			f &^= flagFINPSH
		}
		if off > 0 {
			f &^= flagCWR
		}
		ip[s.ihl+13] = f
		binary.BigEndian.PutUint16(ip[s.ihl+csumOffset:], fold(pseudo+uint32(s.hl-s.ihl+n)))
		d.admit(p, t, o, n+segs*s.hl, segs, n, false)
	}
}

// sum adds up b as the Internet checksum does, before folding.
func sum(b []byte, s uint32) uint32 {
	for len(b) >= 2 {
		s += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
