// SPDX-License-Identifier: Apache-2.0

// Package publish keeps what was computed as immutable snapshots and streams
// it to nodes through SyncService. Resources are encoded once, when they
// change; messages are put together once per audience and revision and shared
// by all streams. A stream remembers which view of its node it has delivered
// and always goes to the newest in one step, so a slow one skips revisions in
// whole and costs the others nothing.
package publish

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Change is one resource that is to be given to an audience, or no longer.
type Change struct {
	Audience Audience
	// Resource is what the audience is given from now on; for a removal only
	// its name counts.
	Resource *dataplanev1.Resource
	Removed  bool
}

// Node is a node of the cluster with the audiences it belongs to.
type Node struct {
	Name string
	// Audiences is what the node is given, in this order of precedence.
	Audiences []Audience
	// Removed tells that the cluster has no such node any more.
	Removed bool
}

// Batch leads from one revision to the next, as a whole.
type Batch struct {
	Changes []Change
	Nodes   []Node
	// Position is how far the source had been read.
	Position Position
	// Trigger is when the oldest change was made, if known.
	Trigger time.Time
}

// Publisher holds the newest snapshot.
type Publisher struct {
	current atomic.Pointer[snapshot] // nil until the source has synced

	mu       sync.Mutex // serializes Publish
	triggers []revisionTrigger

	progress sync.Mutex
	reached  Position
	advanced chan struct{} // closed, and replaced, whenever reached or current change
}

// revisionTrigger remembers when the oldest change of a revision was made.
type revisionTrigger struct {
	revision uint64
	trigger  time.Time
}

// keptTriggers bounds how many revisions' triggers are kept for streams that
// skip revisions.
const keptTriggers = 1024

// NewPublisher returns a publisher that has published nothing: streams wait
// until it has.
func NewPublisher() *Publisher {
	return &Publisher{advanced: make(chan struct{})}
}

// Publish makes the batch the newest revision and returns its number. The first
// call tells that the source has been read in whole. A resource that cannot be
// encoded is left as it was and reported in the error; everything else of the
// batch is published.
func (p *Publisher) Publish(batch Batch) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	old := p.current.Load()
	next := &snapshot{revision: 1, position: batch.Position, trigger: batch.Trigger, superseded: make(chan struct{})}
	if old != nil {
		next.revision = old.revision + 1
		next.states, next.nodes, next.counts = old.states, old.nodes, old.counts
		next.position = old.position.Merge(batch.Position)
	}
	err := next.apply(batch, old == nil)
	p.noteTrigger(next.revision, batch.Trigger)
	p.current.Store(next)
	p.Reached(next.position)
	if old != nil {
		close(old.superseded)
	}
	return next.revision, err
}

// apply makes the batch's changes to a snapshot under construction.
func (s *snapshot) apply(batch Batch, first bool) error {
	var failed error
	editors := map[Audience]*stateEditor{}
	for _, change := range batch.Changes {
		editor := editors[change.Audience]
		if editor == nil {
			base, _ := s.states.Get(string(change.Audience))
			editor = editState(base)
			editors[change.Audience] = editor
		}
		if change.Removed {
			editor.remove(nameOf(change.Resource.GetName()))
			continue
		}
		if kind := change.Resource.GetName().GetType(); kind <= 0 || kind >= maxTypes {
			failed = fmt.Errorf("resource %q has type %d, which cannot be published", change.Resource.GetName().GetKey(), kind)
			continue
		}
		e, err := newEntry(change.Resource)
		if err != nil {
			failed = err
			continue
		}
		editor.put(e)
	}

	states := s.states.Edit()
	deltas := make(map[Audience]*delta, len(editors))
	for audience, editor := range editors {
		difference := editor.difference()
		if difference.empty() {
			continue
		}
		deltas[audience] = &delta{changes: difference}
		s.count(editor, difference)
		if editor.empty() {
			states.Delete(string(audience))
		} else {
			states.Set(string(audience), editor.next)
		}
	}
	s.states = states.Map()
	if !first && !moved(deltas) {
		s.deltas = deltas
	}

	nodes := s.nodes.Edit()
	for _, node := range batch.Nodes {
		if node.Removed {
			nodes.Delete(node.Name)
		} else {
			nodes.Set(node.Name, slices.Clone(node.Audiences))
		}
	}
	s.nodes = nodes.Map()
	return failed
}

// count keeps the number of resources by type.
func (s *snapshot) count(editor *stateEditor, difference changes) {
	for _, e := range difference.upserts {
		if editor.before[e.name] == nil {
			s.counts[e.name.kind]++
		}
	}
	for _, n := range difference.removals {
		s.counts[n.kind]--
	}
}

// moved tells that some resource left one audience and came to another in one
// revision. A node of both must not be told to remove it, so such a revision
// is compared node by node.
func moved(deltas map[Audience]*delta) bool {
	if len(deltas) < 2 {
		return false
	}
	removed := map[name]struct{}{}
	for _, d := range deltas {
		for _, n := range d.changes.removals {
			removed[n] = struct{}{}
		}
	}
	for _, d := range deltas {
		for _, e := range d.changes.upserts {
			if _, ok := removed[e.name]; ok {
				return true
			}
		}
	}
	return false
}

// Reached tells that the source has been read up to this position without
// anything of it having changed what is published.
func (p *Publisher) Reached(position Position) {
	p.progress.Lock()
	defer p.progress.Unlock()
	p.reached = p.reached.Merge(position)
	close(p.advanced)
	p.advanced = make(chan struct{})
}

// status returns the newest snapshot (nil before the first), how far the
// source has been read, and a channel that is closed when either moves on.
func (p *Publisher) status() (*snapshot, Position, <-chan struct{}) {
	p.progress.Lock()
	defer p.progress.Unlock()
	return p.current.Load(), p.reached, p.advanced
}

func (p *Publisher) noteTrigger(revision uint64, trigger time.Time) {
	if trigger.IsZero() {
		return
	}
	if len(p.triggers) >= 2*keptTriggers {
		p.triggers = slices.Delete(p.triggers, 0, len(p.triggers)-keptTriggers)
	}
	p.triggers = append(p.triggers, revisionTrigger{revision, trigger})
}

// oldestTrigger returns when the oldest change after one revision, up to
// another, was made; zero if that is not known.
func (p *Publisher) oldestTrigger(after, upTo uint64) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	var oldest time.Time
	for i := len(p.triggers) - 1; i >= 0 && p.triggers[i].revision > after; i-- {
		t := p.triggers[i]
		if t.revision <= upTo && (oldest.IsZero() || t.trigger.Before(oldest)) {
			oldest = t.trigger
		}
	}
	return oldest
}

// Revision returns the newest revision, 0 before the first.
func (p *Publisher) Revision() uint64 {
	if current := p.current.Load(); current != nil {
		return current.revision
	}
	return 0
}

// Position returns how far the source has been read.
func (p *Publisher) Position() Position {
	_, reached, _ := p.status()
	return reached
}

// Synced tells whether anything has been published, that is, whether the
// source has been read in whole.
func (p *Publisher) Synced() bool { return p.current.Load() != nil }

// AwaitSynced returns once anything has been published, or the context's error.
func (p *Publisher) AwaitSynced(ctx context.Context) error {
	for {
		snapshot, _, advanced := p.status()
		if snapshot != nil {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Counts returns how many resources there are, by type name.
func (p *Publisher) Counts() map[string]uint64 {
	counts := map[string]uint64{}
	current := p.current.Load()
	if current == nil {
		return counts
	}
	for kind, count := range current.counts {
		if typeName, known := dataplanev1.ResourceType_name[int32(kind)]; known && kind != 0 {
			counts[typeName] = uint64(count)
		}
	}
	return counts
}

// ErrUnknownNode tells that the cluster has no node of that name.
var ErrUnknownNode = fmt.Errorf("no such node")

// NodeResources returns every resource that a node is to hold, in name order.
func (p *Publisher) NodeResources(node string, include func(dataplanev1.ResourceType) bool) ([]*dataplanev1.Resource, error) {
	current := p.current.Load()
	if current == nil {
		return nil, ErrUnknownNode
	}
	v, ok := current.view(node)
	if !ok {
		return nil, ErrUnknownNode
	}
	var all changes
	for _, st := range v.states {
		if st == nil {
			continue
		}
		for _, b := range st.buckets {
			for n, e := range b.all() {
				if include(n.kind) {
					all.upserts = append(all.upserts, e)
				}
			}
		}
	}
	all.sort()
	resources := make([]*dataplanev1.Resource, 0, len(all.upserts))
	for _, e := range all.upserts {
		resource, err := e.resource()
		if err != nil {
			return nil, err
		}
		resources = append(resources, resource)
	}
	return resources, nil
}
