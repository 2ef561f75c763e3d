// SPDX-License-Identifier: Apache-2.0

package backends

import (
	"math/bits"
	"slices"
	"unique"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// chunkTarget is the greatest mean number of backends in a chunk.
const chunkTarget = 64

// maxMarks bounds the list of touched hashes; beyond it everything is
// rebuilt, which changes what is computed but not what comes out.
const maxMarks = 4096

// Group holds the slices of one service and knows which chunks have to be
// built anew.
type Group struct {
	// Namespace and Name are those of the service.
	Namespace string
	Name      string

	slices []*Slice
	usable int
	built  int      // chunks of the last Build
	all    bool     // every chunk is to be built
	marks  []uint32 // hashes whose chunk is to be built
}

// Replace takes a slice out and puts another in; either may be nil.
func (g *Group) Replace(before, after *Slice) {
	if before != nil {
		g.slices = slices.DeleteFunc(g.slices, func(s *Slice) bool { return s == before })
		g.usable -= before.usable
		before.group = nil
	}
	if after != nil {
		g.slices = append(g.slices, after)
		g.usable += after.usable
		after.group = g
	}
	g.markDifferences(before, after)
}

// Forget makes the group as if nothing had been built yet.
func (g *Group) Forget() {
	g.built, g.all, g.marks = 0, false, nil
}

func (g *Group) mark(hash uint32) {
	switch {
	case g.all, g.built == 0: // everything will be built anyway
	case len(g.marks) >= maxMarks:
		g.all, g.marks = true, nil
	default:
		g.marks = append(g.marks, hash)
	}
}

func (g *Group) markRecords(records []record) {
	for i := range records {
		g.mark(records[i].hash)
	}
}

func (g *Group) markDifferences(before, after *Slice) {
	var old, present []record
	if before != nil {
		old = before.records
	}
	if after != nil {
		present = after.records
	}
	if before == nil || after == nil || !samePorts(before.ports, after.ports) {
		g.markRecords(old)
		g.markRecords(present)
		return
	}
	for len(old) > 0 && len(present) > 0 {
		switch order := compareRecords(old[0], present[0]); {
		case order == 0 && old[0].same(present[0]):
			old, present = old[1:], present[1:]
		case order <= 0:
			g.mark(old[0].hash)
			old = old[1:]
		default:
			g.mark(present[0].hash)
			present = present[1:]
		}
	}
	g.markRecords(old)
	g.markRecords(present)
}

func samePorts(a, b *portSet) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.key == b.key
}

// Chunks gives the number of chunks. It depends on the present slices alone:
// two calculators with the same objects must agree whatever they saw before.
func (g *Group) Chunks() int {
	if g.usable == 0 {
		return 0
	}
	return 1 << bits.Len(uint((g.usable-1)/chunkTarget))
}

// chunkOf gives the chunk of a hash among a power-of-two count: its highest
// bits, so that records sorted by hash are sorted by chunk.
func chunkOf(hash uint32, chunks int) int {
	return int(uint64(hash) * uint64(chunks) >> 32)
}

// Build builds the chunks that may have changed since the last Build and
// hands them to put. It returns the number of chunks.
func (g *Group) Build(
	zoneOf func(node unique.Handle[string]) string, put func(chunk int, content *dataplanev1.BackendSlice),
) int {
	chunks := g.Chunks()
	b := builder{group: g, chunks: chunks, zoneOf: zoneOf}
	build := func(chunk int) { put(chunk, b.build(chunk)) }
	if g.all || chunks != g.built {
		for chunk := range chunks {
			build(chunk)
		}
	} else {
		slices.Sort(g.marks)
		last := -1
		for _, hash := range g.marks {
			if chunk := chunkOf(hash, chunks); chunks > 0 && chunk != last {
				build(chunk)
				last = chunk
			}
		}
	}
	g.built, g.all, g.marks = chunks, false, nil
	return chunks
}
