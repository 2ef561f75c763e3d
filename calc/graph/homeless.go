// SPDX-License-Identifier: Apache-2.0

package graph

import "github.com/millrace-project/millrace/calc/backends"

// hasNode tells whether the cluster has a node of that name.
func (g *Graph) hasNode(name string) bool { return g.nodes[name] != nil }

// enterHomeless remembers a slice by the nodes that it names and that do not
// exist. Of those that do, nothing is kept: they are the rule.
func (g *Graph) enterHomeless(name id, slice *backends.Slice) {
	slice.Nodes(func(node string) {
		if g.hasNode(node) {
			return
		}
		if g.homeless[node] == nil {
			g.homeless[node] = map[id]struct{}{}
		}
		g.homeless[node][name] = struct{}{}
	})
}

// leaveHomeless forgets what enterHomeless remembered of a slice.
func (g *Graph) leaveHomeless(name id, slice *backends.Slice) {
	slice.Nodes(func(node string) {
		delete(g.homeless[node], name)
		if len(g.homeless[node]) == 0 {
			delete(g.homeless, node)
		}
	})
}

// nodeAppeared reports anew on the slices that missed the node.
func (g *Graph) nodeAppeared(node string) {
	slices := g.homeless[node]
	delete(g.homeless, node)
	for name := range slices {
		g.reportSlice(name, g.slices[name])
	}
}

// nodeVanished reports on the slices that name the node. To find them all are
// looked at, which takes a few milliseconds for 100,000 and is rare.
func (g *Graph) nodeVanished(node string) {
	for name, state := range g.slices {
		names := false
		state.slice.Nodes(func(other string) { names = names || other == node })
		if names {
			g.enterHomeless(name, state.slice)
			g.reportSlice(name, state)
		}
	}
}
