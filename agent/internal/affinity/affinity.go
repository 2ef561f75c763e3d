// SPDX-License-Identifier: Apache-2.0

// Package affinity tells which clients keep which backends of services with
// session affinity, and forgets those that do so no more. Programs pass over
// what is out of date, so forgetting gives room back and nothing else.
package affinity

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// Table is affinity_vN of both families.
type Table struct{ V4, V6 *ebpf.Map }

// Client is a client of a service port, and what it keeps.
type Client struct {
	// Family is 4 or 6.
	Family int
	// Addr is the client's if it is known by its packets, and not valid if by its
	// sockets.
	Addr netip.Addr
	// NetnsCookie is the network namespace's of those.
	NetnsCookie uint64
	ServiceID   uint32
	Backend     netip.AddrPort
	// Idle is how long ago it opened its last connection.
	Idle time.Duration
}

// ForEach calls visit with every client.
func (t *Table) ForEach(visit func(Client) error) error {
	if err := each[layout.V4](t.V4, 4, visit); err != nil {
		return err
	}
	return each[layout.V6](t.V6, 6, visit)
}

func each[A layout.IP](m *ebpf.Map, family int, visit func(Client) error) error {
	var failed error
	now := clock()
	err := bpf.Each(m, func(k layout.AffinityKey[A], v layout.Affinity[A]) bool {
		failed = visit(client(family, &k, &v, now))
		return failed == nil
	})
	return errors.Join(failed, err)
}

func client[A layout.IP](family int, k *layout.AffinityKey[A], v *layout.Affinity[A], now time.Duration) Client {
	c := Client{Family: family, NetnsCookie: k.Cookie(), ServiceID: k.ServiceID, Backend: v.Backend(), Idle: v.Age(now)}
	if c.NetnsCookie == 0 {
		c.Addr = layout.Addr(k.Client)
	}
	return c
}

// clock is the one that programs read.
func clock() time.Duration { return time.Duration(bpf.CoarseNow()) }

// Counts is how many clients there are, by family.
type Counts struct{ V4, V6 int }

// Forget removes the clients of which over, called once, says that they keep
// nothing any more, and returns how many are left. What over knows may be older
// than what the programs know: a client that comes while this goes on is kept.
func (t *Table) Forget(over func() func(Client) bool) (left Counts, err error) {
	since := clock()
	is := over()
	if left.V4, err = forget[layout.V4](t.V4, 4, since, is); err != nil {
		return left, err
	}
	left.V6, err = forget[layout.V6](t.V6, 6, since, is)
	return left, err
}

func forget[A layout.IP](m *ebpf.Map, family int, since time.Duration, over func(Client) bool) (left int, err error) {
	gone := func(k *layout.AffinityKey[A], v *layout.Affinity[A]) bool {
		return int32(v.Used-layout.AffinityTick(since)) < 0 && over(client(family, k, v, since))
	}
	var keys []layout.AffinityKey[A]
	err = bpf.Each(m, func(k layout.AffinityKey[A], v layout.Affinity[A]) bool {
		if gone(&k, &v) {
			keys = append(keys, k)
		} else {
			left++
		}
		return true
	})
	if err != nil {
		return left, err
	}
	for i := range keys {
		// It may have come again since.
		var v layout.Affinity[A]
		err := m.Lookup(&keys[i], &v)
		if err == nil && !gone(&keys[i], &v) {
			left++
			continue
		}
		if err == nil {
			err = m.Delete(&keys[i])
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return left, fmt.Errorf("remove from %s: %w", m, err)
		}
	}
	return left, nil
}
