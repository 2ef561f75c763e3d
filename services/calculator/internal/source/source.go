// SPDX-License-Identifier: Apache-2.0

// Package source defines where a calculator's input comes from. A source reads
// Kubernetes objects, trims them to the calculation's model and hands over
// what changes.
package source

import (
	"context"
	"time"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// Source reads objects until its context ends.
type Source interface {
	// Name is the kind of source, "kube" or "dir".
	Name() string
	// Run hands over to the sink what it reads. It returns nil when the context
	// ends, and an error if the source cannot be read any more by this process.
	Run(ctx context.Context, sink Sink) error
	// Epoch is the identity of the cluster with a counter that an operator
	// raises when the cluster's state was set back, as "identity/counter". It
	// is known once the source has been read in whole and does not change.
	Epoch() string
}

// Overtaken is a source that can find out how far it really is when an agent
// comes that knows more than was handed over.
type Overtaken interface {
	// Ahead is told of the agent, by its node, epoch and position. It starts to
	// find out, tells the sink what is found, and returns at once, with what
	// there is to say to a person if the agent knows more than can be read.
	Ahead(node, epoch string, position map[string]uint64) string
}

// Located is a source that is somewhere else and may be out of reach.
type Located interface {
	// Location tells people where that is, and from where it is known.
	Location() string
}

// Change is the new state of one object; sources are level-triggered, so that
// a change may be repeated and tells nothing of what was before.
type Change struct {
	Key model.Key
	// Object is nil if the object is gone.
	Object model.Object
	// Trigger is when whatever led to the change happened; zero if unknown.
	Trigger time.Time
}

// Sink takes what a source reads. Its methods may be called concurrently and
// do not block for long.
type Sink interface {
	// Apply takes changes that belong together, and the position that includes
	// them.
	Apply(changes []Change, position map[string]uint64)
	// Reached tells that the source has been read up to a position without
	// there being anything to change.
	Reached(position map[string]uint64)
	// Synced tells that the source has been read in whole.
	Synced()
	// SetProblems replaces the problems of one part of the source, such as a
	// file or a watched kind.
	SetProblems(part string, problems []problem.Problem)
}

// Kinds of objects that sources' own problems are about.
const (
	// KindFile is a manifest; its name is the path and the document's number.
	KindFile model.Kind = "File"
	// KindWatch is a watch of the API server; its name is the watched kind.
	KindWatch model.Kind = "Watch"
)
