// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// socketConversion copies what programs of the past keep of connected sockets.
// Both generations know these then, which does no harm: the past translates a
// peer back first, and what it returns means nothing to the present programs.
type socketConversion[A layout.IP] struct {
	old     *ebpf.Map
	convert func(key, value []byte) (k, v []byte)
	f       *FamilyMaps

	moved int
}

// run copies connected_vN, or spilled_vN.
func (c *socketConversion[A]) run(spilled bool) error {
	return eachRaw(c.old, func(r rawElements) error {
		for i := range r.len() {
			cookie, peer := c.read(spilled, r.key(i), r.value(i))
			if cookie == 0 {
				continue
			}
			if err := c.enter(cookie, peer); err != nil {
				return err
			}
			// One that was closed in between would stay for ever.
			now := make([]byte, len(r.value(i)))
			err := c.old.Lookup(r.key(i), now)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
			if still, _ := c.read(spilled, r.key(i), now); err == nil && still == cookie {
				c.moved++
				continue
			}
			if err := c.remove(cookie); err != nil {
				return err
			}
		}
		return nil
	})
}

// read returns the socket of an element and its peer, 0 if there is none.
func (c *socketConversion[A]) read(spilled bool, key, value []byte) (uint64, layout.SockPeer[A]) {
	k, v := c.convert(key, value)
	if spilled {
		var peer layout.SockPeer[A]
		if len(k) != 8 || len(v) != int(unsafe.Sizeof(peer)) {
			return 0, peer
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&peer)), len(v)), v)
		return binary.NativeEndian.Uint64(k), peer
	}
	var slot layout.Connected[A]
	if k == nil || len(v) != int(unsafe.Sizeof(slot)) {
		return 0, slot.Peer
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&slot)), len(v)), v)
	return slot.Cookie, slot.Peer
}

// enter makes the present programs know a socket: in its slot, or if another has
// that, among the spilled ones. Programs claim slots at the same time; between
// the look and the write there is a microsecond, in which one of 65,536 slots
// would have to be claimed.
func (c *socketConversion[A]) enter(cookie uint64, peer layout.SockPeer[A]) error {
	index := uint32(cookie % layout.ConnectedSlots)
	var slot layout.Connected[A]
	if err := c.f.Connected.Lookup(index, &slot); err != nil {
		return err
	}
	switch slot.Cookie {
	case cookie:
		return nil // of an earlier call
	case 0:
		slot.Cookie, slot.Peer = cookie, peer
		return c.f.Connected.Put(index, &slot)
	}
	if err := c.f.Spilled.Update(cookie, &peer, ebpf.UpdateNoExist); errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := c.f.Connected.Lookup(index, &slot); err != nil {
		return err
	}
	slot.Spilled++
	return c.f.Connected.Put(index, &slot)
}

// remove takes back what enter did.
func (c *socketConversion[A]) remove(cookie uint64) error {
	index := uint32(cookie % layout.ConnectedSlots)
	var slot layout.Connected[A]
	if err := c.f.Connected.Lookup(index, &slot); err != nil {
		return err
	}
	if slot.Cookie == cookie {
		slot.Cookie = 0
		return c.f.Connected.Put(index, &slot)
	}
	if err := c.f.Spilled.Delete(cookie); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	slot.Spilled--
	return c.f.Connected.Put(index, &slot)
}
