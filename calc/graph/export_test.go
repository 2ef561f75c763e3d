// SPDX-License-Identifier: Apache-2.0

package graph

import "fmt"

// Residue tells what a graph without objects still holds, nothing if it is as
// a new one: what is forgotten in an index is a leak even where no output
// shows it.
func Residue(g *Graph) string {
	sizes := []struct {
		name string
		size int
	}{
		{"services", len(g.services)}, {"slices", len(g.slices)}, {"nodes", len(g.nodes)},
		{"claims", g.claims.Len()}, {"zones", g.zones.Len()}, {"dirty", len(g.dirty)},
		{"resources", len(g.store.resources)}, {"before", len(g.store.before)},
		{"audiences", len(g.store.narrow)}, {"members", len(g.store.members)},
		{"problems", len(g.problems.problems)}, {"problems before", len(g.problems.before)},
	}
	text := ""
	for _, entry := range sizes {
		if entry.size != 0 {
			text += fmt.Sprintf("%s: %d ", entry.name, entry.size)
		}
	}
	return text
}
