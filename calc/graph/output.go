// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"cmp"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Change is one change of the input.
type Change struct {
	// Key names the object. It may be left zero if Object is set.
	Key model.Key
	// Object is the object's state; nil if it is gone.
	Object model.Object
}

// Set is the change that gives an object its state.
func Set(object model.Object) Change { return Change{object.Key(), object} }

// Gone is the change that takes an object away.
func Gone(key model.Key) Change { return Change{Key: key} }

// Name identifies a resource by type and natural key; it is the comparable
// form of dataplanev1.ResourceName.
type Name struct {
	Type dataplanev1.ResourceType
	Key  string
}

// Compare orders names by type, in the order in which a batch carries them,
// and key.
func (n Name) Compare(other Name) int {
	return cmp.Or(cmp.Compare(n.Type, other.Type), cmp.Compare(n.Key, other.Key))
}

// Proto gives the name as the stream carries it.
func (n Name) Proto() *dataplanev1.ResourceName {
	return &dataplanev1.ResourceName{Type: n.Type, Key: n.Key}
}

// Update is a change of one resource of one audience. A resource whose
// audience changes gives two: a removal and an upsert.
type Update struct {
	Name     Name
	Audience audience.Audience
	// Resource is the new state, nil if it is removed. It is shared and must
	// not be changed; the graph does not change it either.
	Resource *dataplanev1.Resource
}

// Membership is the set of audiences that a node is in.
type Membership struct {
	Node string
	// Audiences is sorted; it is nil if the node is gone.
	Audiences []audience.Audience
}

// ObjectProblems is the new set of problems of one object.
type ObjectProblems struct {
	Object model.Key
	// Problems is sorted; it is empty if nothing is wrong any more.
	Problems []problem.Problem
}

// Output is what changed between two flushes. It depends on the two states
// alone, not on the order in which changes were made.
type Output struct {
	// Updates holds upserts, sorted by name and audience, then removals, in
	// reverse order: referents come before what refers to them and go after.
	Updates []Update
	// Members holds the nodes whose audiences changed, sorted by node.
	Members []Membership
	// Problems holds the objects whose problems changed, sorted by object.
	Problems []ObjectProblems
}

// Empty tells that nothing changed.
func (o *Output) Empty() bool {
	return len(o.Updates) == 0 && len(o.Members) == 0 && len(o.Problems) == 0
}
