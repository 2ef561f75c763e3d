// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"cmp"
	"maps"
	"slices"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// The methods here read the whole state. It is the state of the last flush
// only if nothing was changed since.

// Resource gives one resource and its audience.
func (g *Graph) Resource(name Name) (*dataplanev1.Resource, audience.Audience, bool) {
	p, ok := g.store.resources[name]
	return p.resource, p.audience, ok
}

// Resources gives the resources of an audience, sorted by name. They are
// shared and must not be changed.
func (g *Graph) Resources(of audience.Audience) []*dataplanev1.Resource {
	names := g.store.names(of)
	resources := make([]*dataplanev1.Resource, len(names))
	for i, name := range names {
		resources[i] = g.store.resources[name].resource
	}
	return resources
}

// Audiences gives every audience that has resources, sorted. It includes
// audience.All always.
func (g *Graph) Audiences() []audience.Audience {
	audiences := append(slices.Collect(maps.Keys(g.store.narrow)), audience.All)
	slices.SortFunc(audiences, audience.Audience.Compare)
	return audiences
}

// Members gives every node of the cluster with its audiences, sorted.
func (g *Graph) Members() []Membership {
	members := make([]Membership, 0, len(g.store.members))
	for node := range g.store.members {
		members = append(members, Membership{node, audiencesOf(node)})
	}
	slices.SortFunc(members, compareMembers)
	return members
}

// Membership gives the audiences of a node; ok is false if there is no such
// node in the cluster.
func (g *Graph) Membership(node string) (audiences []audience.Audience, ok bool) {
	if _, ok := g.store.members[node]; !ok {
		return nil, false
	}
	return audiencesOf(node), true
}

// Problems gives everything that is wrong, sorted.
func (g *Graph) Problems() []problem.Problem {
	var problems []problem.Problem
	for _, list := range g.problems.problems {
		problems = append(problems, list...)
	}
	slices.SortFunc(problems, problem.Problem.Compare)
	return problems
}

// Counts gives the number of resources by type.
func (g *Graph) Counts() map[dataplanev1.ResourceType]int {
	counts := map[dataplanev1.ResourceType]int{}
	for name := range g.store.resources {
		counts[name.Type]++
	}
	return counts
}

func compareMembers(a, b Membership) int { return cmp.Compare(a.Node, b.Node) }
