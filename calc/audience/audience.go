// SPDX-License-Identifier: Apache-2.0

// Package audience names sets of nodes that are given the same resources. A
// resource is computed and encoded once for its audience.
package audience

import "cmp"

// Kind is what an audience is made of.
type Kind uint8

// The kinds of audiences.
const (
	// KindAll is every node of the cluster.
	KindAll Kind = iota
	// KindZone is every node of a zone.
	KindZone
	// KindNode is one node.
	KindNode
)

// Audience is a set of nodes. It is comparable; the zero value is All.
type Audience struct {
	Kind Kind
	// Name of the zone or node; empty for KindAll.
	Name string
}

// All is every node of the cluster.
var All = Audience{}

// Zone is every node of the zone of that name.
func Zone(name string) Audience { return Audience{KindZone, name} }

// Node is the node of that name.
func Node(name string) Audience { return Audience{KindNode, name} }

// Compare orders audiences from the widest kind to the narrowest, then by
// name.
func (a Audience) Compare(other Audience) int {
	return cmp.Or(cmp.Compare(a.Kind, other.Kind), cmp.Compare(a.Name, other.Name))
}

// String gives "all", "zone/NAME" or "node/NAME".
func (a Audience) String() string {
	switch a.Kind {
	case KindZone:
		return "zone/" + a.Name
	case KindNode:
		return "node/" + a.Name
	default:
		return "all"
	}
}
