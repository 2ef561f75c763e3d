// SPDX-License-Identifier: Apache-2.0

package backends

import "unique"

// zoneNode is a node whose zone a slice depends on.
type zoneNode struct {
	node  unique.Handle[string]
	place int // in the index's list of the node
}

// ZoneIndex finds the slices that take the zone of their endpoints from a
// node, because the endpoints do not tell it themselves.
type ZoneIndex struct {
	slices map[unique.Handle[string]][]*Slice
}

// NewZoneIndex makes an empty index.
func NewZoneIndex() *ZoneIndex {
	return &ZoneIndex{slices: map[unique.Handle[string]][]*Slice{}}
}

// Len gives the number of nodes that some slice depends on.
func (x *ZoneIndex) Len() int { return len(x.slices) }

// Add enters a slice.
func (x *ZoneIndex) Add(slice *Slice) {
	seen := map[unique.Handle[string]]struct{}{}
	for i := range slice.records {
		r := &slice.records[i]
		if r.zone != none || r.node == none {
			continue
		}
		if _, ok := seen[r.node]; ok {
			continue
		}
		seen[r.node] = struct{}{}
		slice.zoneNodes = append(slice.zoneNodes, zoneNode{r.node, len(x.slices[r.node])})
		x.slices[r.node] = append(x.slices[r.node], slice)
	}
}

// Remove takes a slice out that was added.
func (x *ZoneIndex) Remove(slice *Slice) {
	for _, entry := range slice.zoneNodes {
		list := x.slices[entry.node]
		last := len(list) - 1
		moved := list[last]
		list[entry.place] = moved
		list[last] = nil
		for i := range moved.zoneNodes {
			if moved.zoneNodes[i].node == entry.node {
				moved.zoneNodes[i].place = entry.place
			}
		}
		if last == 0 {
			delete(x.slices, entry.node)
		} else {
			x.slices[entry.node] = list[:last]
		}
	}
	slice.zoneNodes = nil
}

// MarkNode marks, in the groups concerned, what depends on the zone of the
// node, and calls affected for each such group.
func (x *ZoneIndex) MarkNode(node unique.Handle[string], affected func(*Group)) {
	for _, slice := range x.slices[node] {
		if slice.group == nil {
			continue
		}
		for i := range slice.records {
			if r := &slice.records[i]; r.node == node && r.zone == none {
				slice.group.mark(r.hash)
			}
		}
		affected(slice.group)
	}
}
