// SPDX-License-Identifier: Apache-2.0

package backends

import (
	"cmp"
	"slices"
	"sort"
	"strings"
	"unique"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// candidate is an endpoint with the ports it answers on.
type candidate struct {
	*record
	ports *portSet
}

// builder builds chunks; its lists are reused from one to the next.
type builder struct {
	group      *Group
	chunks     int
	zoneOf     func(node unique.Handle[string]) string
	candidates []candidate
	backends   []candidate
}

// build gives the content of one chunk.
func (b *builder) build(chunk int) *dataplanev1.BackendSlice {
	b.collect(chunk)
	b.merge()
	return b.content(chunk)
}

// collect gathers what the slices have in the chunk, sorted by address, the
// preferred of each address first.
func (b *builder) collect(chunk int) {
	b.candidates = b.candidates[:0]
	for _, slice := range b.group.slices {
		if slice.ports == nil {
			continue
		}
		records := slice.records
		start := sort.Search(len(records), func(i int) bool { return chunkOf(records[i].hash, b.chunks) >= chunk })
		for i := start; i < len(records) && chunkOf(records[i].hash, b.chunks) == chunk; i++ {
			b.candidates = append(b.candidates, candidate{&records[i], slice.ports})
		}
	}
	slices.SortFunc(b.candidates, func(x, y candidate) int {
		return cmp.Or(x.compareAddresses(y.record), comparePreference(x.record, y.record),
			strings.Compare(x.ports.key, y.ports.key))
	})
}

// merge makes backends of the candidates. An address may be in several
// slices: with the same ports, while it moves from one to another, or with
// different ones. Each of its ports counts once.
func (b *builder) merge() {
	b.backends = b.backends[:0]
	for rest := b.candidates; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].compareAddresses(rest[0].record) == 0 {
			n++
		}
		same := rest[:n]
		rest = rest[n:]
		first := len(b.backends)
		if n == 1 {
			b.backends = append(b.backends, same[0])
		} else {
			b.mergeAddress(same)
		}
		// Only now: a preferred endpoint that is not usable hides others.
		b.backends = append(b.backends[:first], slices.DeleteFunc(b.backends[first:], func(c candidate) bool {
			return !c.usable()
		})...)
	}
}

// mergeAddress merges candidates of one address, the preferred first. A port
// belongs to the first candidate that has it. The target of a port may differ
// between candidates; then the address answers on both, as two backends.
func (b *builder) mergeAddress(same []candidate) {
	type target struct {
		name     string
		protocol dataplanev1.Protocol
		port     uint32
	}
	taken := map[target]bool{}
	for _, c := range same {
		ports := c.ports.message.GetPorts()
		left := make([]*dataplanev1.TargetPort, 0, len(ports))
		for _, port := range ports {
			key := target{port.Name, port.Protocol, port.Port}
			if !taken[key] {
				taken[key] = true
				left = append(left, port)
			}
		}
		switch len(left) {
		case 0:
		case len(ports):
			b.backends = append(b.backends, c)
		default:
			b.backends = append(b.backends, candidate{c.record, newPortSet(left)})
		}
	}
}

// content writes the merged backends down.
func (b *builder) content(chunk int) *dataplanev1.BackendSlice {
	content := &dataplanev1.BackendSlice{Namespace: b.group.Namespace, Name: b.group.Name, Chunk: uint32(chunk)}
	if len(b.backends) == 0 {
		return content
	}
	var (
		sets    = b.portSets()
		slab    = make([]dataplanev1.Backend, len(b.backends))
		indexes = make(map[string]uint32, len(sets))
		size    int
	)
	content.PortSets = make([]*dataplanev1.PortSet, len(sets))
	for i, set := range sets {
		content.PortSets[i] = set.message
		indexes[set.key] = uint32(i)
	}
	for i := range b.backends {
		size += len(b.backends[i].bytes())
	}
	// One allocation each for the backends and for their addresses.
	addresses := make([]byte, 0, size)
	content.Backends = make([]*dataplanev1.Backend, len(b.backends))
	for i, c := range b.backends {
		start := len(addresses)
		addresses = append(addresses, c.bytes()...)
		backend := &slab[i]
		backend.Address = addresses[start:len(addresses):len(addresses)]
		backend.PortSet = indexes[c.ports.key]
		backend.Node = c.node.Value()
		backend.Zone = c.zone.Value()
		if c.zone == none && c.node != none {
			backend.Zone = b.zoneOf(c.node)
		}
		backend.Ready = c.flags&flagReady != 0
		backend.Serving = c.flags&flagServing != 0
		backend.Terminating = c.flags&flagTerminating != 0
		content.Backends[i] = backend
	}
	slices.SortFunc(content.Backends, func(x, y *dataplanev1.Backend) int {
		return cmp.Or(cmp.Compare(len(x.Address), len(y.Address)), slices.Compare(x.Address, y.Address),
			cmp.Compare(x.PortSet, y.PortSet))
	})
	return content
}

// portSets gives the distinct port sets among the backends, sorted.
func (b *builder) portSets() []*portSet {
	var sets []*portSet
	for _, c := range b.backends {
		place, found := slices.BinarySearchFunc(sets, c.ports.key, func(set *portSet, key string) int {
			return strings.Compare(set.key, key)
		})
		if !found {
			sets = slices.Insert(sets, place, c.ports)
		}
	}
	return sets
}
