// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"errors"
	"net/netip"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

// flowConversion moves the flows of one map of the past.
type flowConversion[A layout.IP] struct {
	old     *ebpf.Map
	convert func(key, value []byte) (k, v []byte)
	to      *Generations // where they go
	other   *Generations // where they must not be, too
	// writing keeps away who exchanges those or moves their entries: what is
	// entered in a map that has drained meanwhile is dropped with it.
	writing sync.Locker

	moved, left int
}

func (c *flowConversion[A]) run() error {
	return eachRaw(c.old, func(r rawElements) error {
		c.writing.Lock()
		defer c.writing.Unlock()
		for i := range r.len() {
			if err := c.move(r.key(i), r.value(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// read converts an element; nil if it is no live record. Aliases are made anew
// of records: one of a flow that is over may stand where a new flow does.
func (c *flowConversion[A]) read(key, value []byte) (*layout.CtKey[A], *layout.CtEntry[A]) {
	k, v := c.convert(key, value)
	if len(k) != int(unsafe.Sizeof(layout.CtKey[A]{})) || len(v) != int(unsafe.Sizeof(layout.CtEntry[A]{})) {
		return nil, nil
	}
	// Copies, and aligned.
	ctKey, entry := new(layout.CtKey[A]), new(layout.CtEntry[A])
	copy(unsafe.Slice((*byte)(unsafe.Pointer(ctKey)), len(k)), k)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(entry)), len(v)), v)
	if entry.Kind != layout.CtRecord || entry.Expires <= CoarseNow() {
		return nil, nil
	}
	return ctKey, entry
}

// move takes a flow over: the present programs know it before those of the past
// forget it.
func (c *flowConversion[A]) move(key, value []byte) error {
	k, e := c.read(key, value)
	if e == nil {
		return nil
	}
	to := c.to.Current()
	elements := append([]flowElement[A]{{*k, *e}}, aliases(e)...)
	for _, el := range elements {
		err := to.Put(&el.key, &el.entry)
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) {
			c.left++
			return nil // the past keeps it
		}
		if err != nil {
			return err
		}
		// The present programs may have seen packets of it behind those of the
		// past, and taken them for a flow without a service.
		if err := c.clear(&el.key, e.Nonce); err != nil {
			return err
		}
	}
	last := make([]byte, len(value))
	switch err := c.old.LookupAndDelete(key, last); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		// It ended, or became established and is met there.
		return nil
	case err != nil:
		return err
	}
	c.moved++
	if bytes.Equal(last, value) {
		return nil
	}
	// It changed meanwhile; unless the present programs have seen it already,
	// the change is carried on.
	_, changed := c.read(key, last)
	var have layout.CtEntry[A]
	if changed == nil || to.Lookup(k, &have) != nil || have != *e {
		return nil
	}
	if err := to.Update(k, changed, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// clear removes an element of another flow from the other map.
func (c *flowConversion[A]) clear(key *layout.CtKey[A], nonce uint32) error {
	current, draining := c.other.Maps()
	for _, m := range []*ebpf.Map{draining, current} {
		var have layout.CtEntry[A]
		if m == nil || m.Lookup(key, &have) != nil || have.Nonce == nonce {
			continue
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil
}

type flowElement[A layout.IP] struct {
	key   layout.CtKey[A]
	entry layout.CtEntry[A]
}

// aliases makes those of a record, as the programs do.
func aliases[A layout.IP](e *layout.CtEntry[A]) []flowElement[A] {
	var list []flowElement[A]
	add := func(kind layout.CtKind, a, b netip.AddrPort) {
		key, clientIsLo, ok := layout.NewCtKey[A](a, b, e.Main.Proto)
		if !ok {
			return
		}
		flags := e.Flags &^ layout.CtOrigIsLo
		if clientIsLo {
			flags |= layout.CtOrigIsLo
		}
		list = append(list, flowElement[A]{key, layout.CtEntry[A]{Nonce: e.Nonce, Kind: kind, Flags: flags, Main: e.Main}})
	}
	if e.Flags&layout.CtDNAT != 0 {
		add(layout.CtAliasFrontend, e.Client(), e.Frontend())
	}
	if e.Flags&(layout.CtSNAT|layout.CtHairpin) == layout.CtSNAT {
		add(layout.CtAliasBackend, layout.AddrPort(e.ClientAddr, e.StackPort), e.Backend())
	}
	return list
}
