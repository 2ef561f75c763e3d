// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
	"github.com/millrace-project/millrace/test/testbed"
)

// kernel is what the pinned maps of a node hold, read without its agent.
type kernel struct {
	ids       map[uint32]layout.IDKey
	frontends map[frontend]answer
}

// readKernel reads the pinned maps. Numbers must be unique, and every frontend
// and every tracked flow must have one that is given out.
func readKernel(node *testbed.Node) (*kernel, error) {
	k := &kernel{ids: map[uint32]layout.IDKey{}, frontends: map[frontend]answer{}}
	var twice error
	err := eachPinned(node, "ids", func(key layout.IDKey, id uint32) {
		if other, ok := k.ids[id]; ok || id == 0 {
			twice = errors.Join(twice, fmt.Errorf("number %d is given out to %s and %s", id, key, other))
		}
		k.ids[id] = key
	})
	return k, errors.Join(err, twice, readFamily[layout.V4](node, k, "_v4"), readFamily[layout.V6](node, k, "_v6"))
}

func readFamily[A layout.IP](node *testbed.Node, k *kernel, suffix string) error {
	backends, err := pinned(node, "backends"+suffix)
	if err != nil {
		return err
	}
	defer backends.Close()
	var wrong error
	err = eachPinned(node, "frontends"+suffix, func(key layout.FrontendKey[A], value layout.Frontend) {
		a := answer{backends: []string{}}
		id, ok := k.ids[value.ServiceID]
		if !ok {
			wrong = errors.Join(wrong, fmt.Errorf("frontend %s has number %d, which is not given out", key, value.ServiceID))
		}
		a.id = id
		for i := range value.BackendCount {
			var b layout.Backend[A]
			if err := backends.Lookup(value.FirstBackend+i, &b); err != nil {
				wrong = errors.Join(wrong, fmt.Errorf("frontend %s: backend %d: %w", key, value.FirstBackend+i, err))
			}
			a.backends = append(a.backends, b.AddrPort().String())
		}
		slices.Sort(a.backends)
		k.frontends[frontend{key.AddrPort(), key.Proto}] = a
	})
	if err != nil {
		return err
	}
	for _, name := range []string{"established", "embryonic"} {
		err := eachPinned(node, name+suffix+"-current", func(key layout.CtKey[A], entry layout.CtEntry[A]) {
			if entry.Kind != layout.CtRecord || entry.ServiceID == 0 {
				return
			}
			if _, ok := k.ids[entry.ServiceID]; !ok {
				wrong = errors.Join(wrong, fmt.Errorf("flow %s has number %d, which is not given out", key, entry.ServiceID))
			}
		})
		if err != nil {
			return err
		}
	}
	return wrong
}

func pinned(node *testbed.Node, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(node.BPFDir, "maps", name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, err)
	}
	return m, nil
}

func eachPinned[K, V interface{}](node *testbed.Node, name string, visit func(K, V)) error {
	m, err := pinned(node, name)
	if err != nil {
		return err
	}
	defer m.Close()
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		visit(key, value)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read map %s: %w", name, err)
	}
	return nil
}

// is tells where the kernel differs from one of the states: every single
// frontend must be as in one of them. A key that changes hands may be nobody's
// in between.
func (k *kernel) is(states ...map[frontend]answer) error {
	keys := map[frontend]struct{}{}
	for _, state := range append(states, k.frontends) {
		for f := range state {
			keys[f] = struct{}{}
		}
	}
	var wrong error
	for f := range keys {
		have, present := k.frontends[f]
		fits := false
		var wanted []any
		owners := map[layout.IDKey]struct{}{}
		for _, state := range states {
			want, ok := state[f]
			if ok {
				owners[want.id] = struct{}{}
			}
			fits = fits || ok == present && want.equal(have)
			wanted = append(wanted, want)
		}
		if !fits && (present || len(owners) < 2) {
			wrong = errors.Join(wrong, fmt.Errorf("frontend %s is %v (present: %v), want one of %v", f, have, present, wanted))
		}
	}
	return wrong
}
