// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"net/netip"
	"sync"

	"github.com/millrace-project/millrace/bpf/layout"
)

// ending lets those who end flows of addresses at the same time share a pass
// over the tables: a node that is drained takes down its pods all at once.
type ending struct {
	mu      sync.Mutex
	running bool
	next    *endPass
}

// endPass is a pass that is still to begin, or goes on.
type endPass struct {
	addresses map[netip.Addr]struct{}
	done      chan struct{}
	removed   int
	err       error
}

// RemoveAddresses ends all flows from and to the addresses. When it returns, none
// of those that were there when it was called is left. Calls that come
// together share a pass, and each returns the flows of all.
func (t *Table) RemoveAddresses(addresses []netip.Addr) (int, error) {
	if len(addresses) == 0 {
		return 0, nil
	}
	e := &t.ending
	e.mu.Lock()
	if e.next == nil {
		e.next = &endPass{addresses: map[netip.Addr]struct{}{}, done: make(chan struct{})}
	}
	pass := e.next
	for _, addr := range addresses {
		pass.addresses[addr.Unmap()] = struct{}{}
	}
	if e.running {
		e.mu.Unlock()
		<-pass.done
		return pass.removed, pass.err
	}
	e.running = true
	for e.next != nil {
		now := e.next
		e.next = nil
		e.mu.Unlock()
		n4, err4 := each(t, 4, touches[layout.V4](now.addresses))
		n6, err6 := each(t, 6, touches[layout.V6](now.addresses))
		now.removed, now.err = n4+n6, errors.Join(err4, err6)
		close(now.done)
		e.mu.Lock()
	}
	e.running = false
	e.mu.Unlock()
	return pass.removed, pass.err
}

// touches judges by the ends of a flow.
func touches[A layout.IP](addresses map[netip.Addr]struct{}) func(*layout.CtKey[A], *layout.CtEntry[A]) verdict {
	return func(_ *layout.CtKey[A], e *layout.CtEntry[A]) verdict {
		if e.Kind != layout.CtRecord {
			return keep
		}
		for _, end := range []netip.AddrPort{e.Client(), e.Backend(), e.Frontend()} {
			if _, ok := addresses[end.Addr().Unmap()]; ok {
				return remove
			}
		}
		return keep
	}
}
