// SPDX-License-Identifier: Apache-2.0

// Package routes programs who owns an address: nodes, pods of this node with
// their devices, and the prefixes that nodes give to pods.
package routes

import (
	"fmt"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
)

// Programmer keeps routes_vN as wanted. It is not safe for concurrent use.
type Programmer struct {
	table  tables.Routes
	kernel map[tables.RouteKey]tables.Route
}

// New adopts what the maps hold.
func New(table tables.Routes) (*Programmer, error) {
	p := &Programmer{table: table, kernel: map[tables.RouteKey]tables.Route{}}
	for _, f := range tables.Families {
		err := table.ReadRoutes(f, func(e tables.RouteEntry) { p.kernel[e.Key] = e.Value })
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
	}
	return p, nil
}

// Sync makes the maps hold what is desired. Entries beyond that go only if
// they are stale: before a node is in sync they may be of things it has not heard
// of yet. The errors are by route; everything else has been done.
func (p *Programmer) Sync(desired map[tables.RouteKey]tables.Route, stale func(tables.RouteKey) bool) map[tables.RouteKey]error {
	failed := map[tables.RouteKey]error{}
	var puts [2][]tables.RouteEntry
	for key, want := range desired {
		if have, ok := p.kernel[key]; !ok || have != want {
			puts[key.Family] = append(puts[key.Family], tables.RouteEntry{Key: key, Value: want})
		}
	}
	var deletes [2][]tables.RouteKey
	for key := range p.kernel {
		if _, ok := desired[key]; !ok && stale(key) {
			deletes[key.Family] = append(deletes[key.Family], key)
		}
	}
	for _, f := range tables.Families {
		// Deletions come first only if the map is full otherwise: an address
		// that moves to a longer prefix must not be nobody's in between.
		p.put(f, puts[f], failed)
		for _, key := range deletes[f] {
			if err := p.table.DeleteRoutes(f, []tables.RouteKey{key}); err != nil {
				failed[key] = fmt.Errorf("delete route %s: %w", key.Prefix(), err)
				continue
			}
			delete(p.kernel, key)
		}
	}
	return failed
}

func (p *Programmer) put(f tables.Family, entries []tables.RouteEntry, failed map[tables.RouteKey]error) {
	if len(entries) == 0 {
		return
	}
	if err := p.table.PutRoutes(f, entries); err == nil {
		for _, e := range entries {
			p.kernel[e.Key] = e.Value
		}
		return
	}
	// Some may have been written; write each and see which fails.
	for _, e := range entries {
		if err := p.table.PutRoutes(f, []tables.RouteEntry{e}); err != nil {
			failed[e.Key] = fmt.Errorf("write route %s: %w", e.Key.Prefix(), err)
			continue
		}
		p.kernel[e.Key] = e.Value
	}
}

// Len returns how many routes of a family the kernel holds.
func (p *Programmer) Len(f tables.Family) int {
	n := 0
	for key := range p.kernel {
		if key.Family == f {
			n++
		}
	}
	return n
}
