// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/millrace-project/millrace/bpf/layout"
)

// TCP flags.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// packet is a TCP or UDP packet, or an ICMP error about one.
type packet struct {
	proto    uint8
	src, dst netip.AddrPort
	ttl      uint8
	flags    uint8 // of TCP
	seq, ack uint32
	payload  string
	zeroSum  bool          // UDP over IPv4 without a checksum
	options  bool          // IPv4 options, or an IPv6 extension header
	fragment fragmentPlace // its place in a datagram

	// An ICMP error: src and dst without ports, and inside the packet it is about.
	icmpType, icmpCode uint8
	icmpRest           uint32
	inside             []byte // from its IP header on; set by parse, too
	about              *packet
}

type fragmentPlace int

const (
	whole fragmentPlace = iota
	first
	later
)

// fragmentID is of every fragmented datagram.
const fragmentID = 0xbeef

func (p packet) String() string {
	var names []string
	for i, n := range []string{"fin", "syn", "rst", "psh", "ack"} {
		if p.flags&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	if p.icmpType != 0 {
		return fmt.Sprintf("icmp %d/%d %s > %s about {%v}", p.icmpType, p.icmpCode, p.src.Addr(), p.dst.Addr(), p.about)
	}
	return fmt.Sprintf("%d %s > %s %s seq %d ack %d ttl %d %q", p.proto, p.src, p.dst, strings.Join(names, "+"), p.seq, p.ack,
		p.ttl, p.payload)
}

// from and to make a packet with other ends.
func (p packet) from(a netip.AddrPort) packet { p.src = a; return p }
func (p packet) to(a netip.AddrPort) packet   { p.dst = a; return p }

// data is a packet in the middle of a flow; SYNs and the like are made by segment.
func (h *host) data(src, dst netip.AddrPort, payload string) packet {
	if h.proto == layout.ProtoUDP {
		return packet{proto: h.proto, src: src, dst: dst, ttl: 64, payload: payload}
	}
	return packet{proto: h.proto, src: src, dst: dst, ttl: 64, flags: psh | ack, seq: 1001, ack: 5001, payload: payload}
}

// segment is a TCP packet.
func segment(src, dst netip.AddrPort, flags uint8, seq, ackNo uint32) packet {
	return packet{proto: layout.ProtoTCP, src: src, dst: dst, ttl: 64, flags: flags, seq: seq, ack: ackNo}
}

// opening is the first packet of a flow.
func (h *host) opening(src, dst netip.AddrPort) packet {
	if h.proto == layout.ProtoTCP {
		return segment(src, dst, syn, 1000, 0)
	}
	return h.data(src, dst, "hello")
}

// build makes the bytes of a packet, with checksums as they are on the wire.
func (h *host) build(p packet) []byte {
	h.t.Helper()
	var l4 gopacket.SerializableLayer
	var body []byte
	var ipProto layers.IPProtocol
	network := h.network(p)
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	switch {
	case p.icmpType != 0 && h.n == 4:
		ipProto = layers.IPProtocolICMPv4
		l4 = &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(p.icmpType, p.icmpCode), Seq: uint16(p.icmpRest)}
		body = p.inside
	case p.icmpType != 0:
		ipProto = layers.IPProtocolICMPv6
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(p.icmpType, p.icmpCode)}
		icmp.SetNetworkLayerForChecksum(network)
		l4 = icmp
		body = append(binary.BigEndian.AppendUint32(nil, p.icmpRest), p.inside...)
	case p.proto == layout.ProtoTCP:
		ipProto = layers.IPProtocolTCP
		t := &layers.TCP{SrcPort: layers.TCPPort(p.src.Port()), DstPort: layers.TCPPort(p.dst.Port()), Seq: p.seq, Ack: p.ack, Window: 4096,
			FIN: p.flags&fin != 0, SYN: p.flags&syn != 0, RST: p.flags&rst != 0, PSH: p.flags&psh != 0, ACK: p.flags&ack != 0}
		if t.SYN {
			t.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{5, 0xb4}}}
		}
		t.SetNetworkLayerForChecksum(network)
		l4, body = t, []byte(p.payload)
	default:
		ipProto = layers.IPProtocolUDP
		u := &layers.UDP{SrcPort: layers.UDPPort(p.src.Port()), DstPort: layers.UDPPort(p.dst.Port())}
		u.SetNetworkLayerForChecksum(network)
		l4, body = u, []byte(p.payload)
	}
	if err := gopacket.SerializeLayers(buf, opts, l4, gopacket.Payload(body)); err != nil {
		h.t.Fatalf("build %s: %v", p, err)
	}
	segment := append([]byte(nil), buf.Bytes()...)
	if p.zeroSum {
		segment[6], segment[7] = 0, 0
	}
	return append(make([]byte, 12, 14), h.ip(p, ipProto, segment)...)
}

// network is the IP layer as transport checksums need it.
func (h *host) network(p packet) gopacket.NetworkLayer {
	if h.n == 4 {
		return &layers.IPv4{SrcIP: p.src.Addr().AsSlice(), DstIP: p.dst.Addr().AsSlice()}
	}
	return &layers.IPv6{SrcIP: p.src.Addr().AsSlice(), DstIP: p.dst.Addr().AsSlice()}
}

// split is where a fragmented datagram is cut: behind the first 16 bytes of payload and header.
const split = 24

// ip puts the ethertype and an IP header before a segment.
func (h *host) ip(p packet, proto layers.IPProtocol, segment []byte) []byte {
	offset, more := 0, false
	switch p.fragment {
	case first:
		segment, more = segment[:split], true
	case later:
		segment, offset = segment[split:], split/8
	}
	if h.n == 4 {
		ip := []byte{0x08, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, p.ttl, byte(proto), 0, 0}
		hdr := ip[2:]
		if p.fragment != whole {
			binary.BigEndian.PutUint16(hdr[4:], fragmentID)
			binary.BigEndian.PutUint16(hdr[6:], uint16(offset))
			if more {
				hdr[6] |= 0x20
			}
		}
		ip = append(append(ip, p.src.Addr().AsSlice()...), p.dst.Addr().AsSlice()...)
		if p.options {
			ip = append(ip, 1, 1, 1, 1, 1, 1, 1, 0) // no operation, end
		}
		hdr = ip[2:]
		hdr[0] = 0x40 | byte(len(hdr)/4)
		binary.BigEndian.PutUint16(hdr[2:], uint16(len(hdr)+len(segment)))
		binary.BigEndian.PutUint16(hdr[10:], ^sum(0, hdr))
		return append(ip, segment...)
	}
	next := byte(proto)
	var ext []byte
	if p.fragment != whole {
		off := uint16(offset << 3)
		if more {
			off |= 1
		}
		ext = append([]byte{next, 0}, byte(off>>8), byte(off), 0, 0, fragmentID>>8, fragmentID&0xff)
		next = 44
	}
	if p.options {
		ext = append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, ext...) // hop-by-hop: padding
		next = 0
	}
	ip := []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, next, p.ttl}
	binary.BigEndian.PutUint16(ip[6:], uint16(len(ext)+len(segment)))
	ip = append(append(ip, p.src.Addr().AsSlice()...), p.dst.Addr().AsSlice()...)
	return append(append(ip, ext...), segment...)
}

// sum adds up 16-bit words in one's complement (RFC 1071).
func sum(start uint32, b []byte) uint16 {
	s := uint64(start)
	for ; len(b) > 1; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// parse reads a frame and verifies every checksum in it by computing it anew;
// those that the fragment of a datagram or the quote of a packet cannot be
// verified by are left out.
func (h *host) parse(frame []byte) packet {
	h.t.Helper()
	if len(frame) < 14 {
		h.t.Fatalf("a frame of %d bytes", len(frame))
	}
	return h.parseIP(frame[14:], false)
}

func (h *host) parseIP(b []byte, quoted bool) packet {
	h.t.Helper()
	var p packet
	var src, dst netip.Addr
	var next byte
	offset, more, total := 0, false, 0
	if len(b) > 0 && b[0]>>4 == 4 {
		hlen := int(b[0]&15) * 4
		p.options = hlen > 20
		if s := sum(0, b[:hlen]); s != 0xffff {
			h.t.Errorf("IP header checksum of % x is wrong: sum %04x", b[:hlen], s)
		}
		total = int(binary.BigEndian.Uint16(b[2:])) - hlen
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		p.ttl, next = b[8], b[9]
		frag := binary.BigEndian.Uint16(b[6:])
		offset, more = int(frag&0x1fff)*8, frag&0x2000 != 0
		b = b[hlen:]
	} else {
		total = int(binary.BigEndian.Uint16(b[4:]))
		p.ttl, next = b[7], b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = b[40:]
		for next == 0 || next == 44 {
			if next == 44 {
				off := binary.BigEndian.Uint16(b[2:])
				offset, more = int(off&^7), off&1 != 0
			} else {
				p.options = true
			}
			next = b[0]
			b, total = b[8:], total-8
		}
	}
	if !quoted && len(b) != total {
		h.t.Errorf("the packet has %d bytes behind its IP header, which says %d", len(b), total)
	}
	switch {
	case offset > 0:
		p.fragment = later
	case more:
		p.fragment = first
	}
	p.src, p.dst = at(src, 0), at(dst, 0)
	pseudo := uint32(sum(0, src.AsSlice())) + uint32(sum(0, dst.AsSlice())) + uint32(next) + uint32(total)
	whole := p.fragment == whole && len(b) == total
	switch next {
	case 1, 58:
		if next == 1 {
			pseudo = 0
		}
		if s := sum(pseudo, b); whole && s != 0xffff {
			h.t.Errorf("ICMP checksum is wrong: sum %04x of % x", s, b)
		}
		p.icmpType, p.icmpCode, p.icmpRest = b[0], b[1], binary.BigEndian.Uint32(b[4:])
		p.inside = b[8:]
		about := h.parseIP(p.inside, true)
		p.about = &about
		return p
	}
	p.proto = next
	if p.fragment == later {
		p.payload = string(b)
		return p
	}
	p.src = at(src, binary.BigEndian.Uint16(b))
	p.dst = at(dst, binary.BigEndian.Uint16(b[2:]))
	if next == layout.ProtoUDP {
		if check := binary.BigEndian.Uint16(b[6:]); check == 0 {
			p.zeroSum = true
		} else if s := sum(pseudo, b); whole && s != 0xffff {
			h.t.Errorf("UDP checksum of %s > %s is wrong: sum %04x", p.src, p.dst, s)
		}
		p.payload = string(b[8:])
		return p
	}
	if len(b) < 20 {
		return p // quoted
	}
	if s := sum(pseudo, b); whole && s != 0xffff {
		h.t.Errorf("TCP checksum of %s > %s is wrong: sum %04x", p.src, p.dst, s)
	}
	p.seq, p.ack = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	p.flags = b[13] & 0x1f
	p.payload = string(b[int(b[12]>>4)*4:])
	return p
}

// want compares a packet with one that is expected, but for its hop limit.
func (h *host) want(got, want packet) {
	h.t.Helper()
	got.ttl, want.ttl = 0, 0
	if got.String() != want.String() || got.zeroSum != want.zeroSum || got.options != want.options || got.fragment != want.fragment {
		h.t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// untouched runs a packet that the programs must not change at all.
func (h *host) untouched(dev, hook string, p packet) {
	h.t.Helper()
	h.untouchedBytes(dev, hook, h.build(p))
}

func (h *host) untouchedBytes(dev, hook string, frame []byte) {
	h.t.Helper()
	verdict, out := h.run(dev, hook, frame)
	if verdict != pass || !bytes.Equal(out[12:], frame[12:]) {
		h.t.Errorf("%s %s: verdict %s\nin  % x\nout % x", dev, hook, verdictName(verdict), frame[12:], out[12:])
	}
}
