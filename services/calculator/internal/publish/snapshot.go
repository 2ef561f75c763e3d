// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/persist"
)

// Audience names a set of nodes that are given the same resources. Which
// audiences a node belongs to is part of a batch (Node), so that membership
// changes with the resources and never beside them.
type Audience string

// snapshot is everything that was computed, at one revision. It is immutable:
// whoever has it reads it without locks and keeps nobody from publishing.
type snapshot struct {
	revision uint64
	position Position
	trigger  time.Time

	states persist.Map[*state]     // by audience
	nodes  persist.Map[[]Audience] // by node name

	// deltas has, for each audience that differs from the revision before,
	// what differs. It is nil where a delta must not be used on its own: in
	// the first revision, and when a resource moved between audiences.
	deltas map[Audience]*delta
	counts [maxTypes]int

	// superseded is closed once a newer snapshot exists.
	superseded chan struct{}

	commitOnce sync.Once
	commit     *frame
	commitErr  error
}

// delta is what one revision changed for one audience, encoded when the first
// stream needs it and shared by all.
type delta struct {
	changes changes
	once    sync.Once
	encoded []*frame
	err     error
}

func (d *delta) frames() ([]*frame, error) {
	d.once.Do(func() { d.encoded, d.err = d.changes.frames() })
	return d.encoded, d.err
}

// sharedCommit returns the commit of the revision for every stream that has
// followed from the one before.
func (s *snapshot) sharedCommit() (*frame, error) {
	s.commitOnce.Do(func() {
		s.commit, s.commitErr = encodeCommit(s.revision, s.position, s.trigger, 0)
	})
	return s.commit, s.commitErr
}

func encodeCommit(revision uint64, position Position, trigger time.Time, sum uint64) (*frame, error) {
	commit := &dataplanev1.Commit{Revision: revision, Position: position.proto(), InSync: true, Digest: sum}
	if !trigger.IsZero() {
		commit.TriggerTime = timestamppb.New(trigger)
	}
	return encodeResponse(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Commit{Commit: commit}})
}

// view is what one node is given at one revision. A stream keeps the view that
// its agent has been brought to, and nothing else: what is to be sent next is
// the difference to the newest view, whatever lies between.
type view struct {
	revision  uint64
	position  Position
	audiences []Audience
	states    []*state // parallel to audiences; nil where there is nothing
}

// view returns what a node is given; ok is false if there is no such node.
func (s *snapshot) view(node string) (v view, ok bool) {
	audiences, ok := s.nodes.Get(node)
	if !ok {
		return view{}, false
	}
	v = view{revision: s.revision, position: s.position, audiences: audiences, states: make([]*state, len(audiences))}
	for i, audience := range audiences {
		v.states[i], _ = s.states.Get(string(audience))
	}
	return v, true
}

func (v *view) lookup(n name) *entry {
	for _, st := range v.states {
		if e := st.lookup(n); e != nil {
			return e
		}
	}
	return nil
}

func (v *view) state(audience Audience) *state {
	if i := slices.Index(v.audiences, audience); i >= 0 {
		return v.states[i]
	}
	return nil
}

// digests returns the digest of all resources of the announced types. A node
// is given a name by one audience only, so the audiences' digests add up.
func (v *view) digests(types typeSet) *digest.Buckets {
	var digests digest.Buckets
	for _, st := range v.states {
		st.addDigests(types, &digests)
	}
	return &digests
}

// fullFrames returns the messages that bring an agent that holds nothing to
// the view.
func (v *view) fullFrames(types typeSet) ([]*frame, error) {
	lists := make([][]*frame, len(v.states))
	for i, st := range v.states {
		var err error
		if lists[i], err = st.fullFrames(); err != nil {
			return nil, fmt.Errorf("encoding what audience %q is given: %w", v.audiences[i], err)
		}
	}
	return mergeFrames(types, lists...), nil
}

// resumeChanges returns what brings an agent to the view that holds the given
// versions in the given buckets, and in all others what the view has.
func (v *view) resumeChanges(types typeSet, held map[uint32]map[name]uint64) changes {
	var c changes
	for i, holds := range held {
		for _, st := range v.states {
			for n, e := range st.bucket(int(i)).all() {
				if version, ok := holds[n]; types.has(n.kind) && (!ok || version != e.version) {
					c.upserts = append(c.upserts, e)
				}
			}
		}
		for n := range holds {
			if !types.has(n.kind) || v.lookup(n) == nil {
				c.removals = append(c.removals, n)
			}
		}
	}
	c.sort()
	return c
}

// changesSince returns what leads from an older view of the node to this one,
// membership included: what a joined audience gives and no other gave, and
// what a left audience gave and no other gives.
func (v *view) changesSince(old *view, types typeSet) changes {
	candidates := map[name]struct{}{}
	for i, audience := range v.audiences {
		addDifferingNames(candidates, old.state(audience), v.states[i])
	}
	for i, audience := range old.audiences {
		if !slices.Contains(v.audiences, audience) {
			addDifferingNames(candidates, old.states[i], nil)
		}
	}
	var c changes
	for n := range candidates {
		if !types.has(n.kind) {
			continue
		}
		was, is := old.lookup(n), v.lookup(n)
		switch {
		case is == nil && was != nil:
			c.removals = append(c.removals, n)
		case is != nil && (was == nil || was.version != is.version):
			c.upserts = append(c.upserts, is)
		}
	}
	c.sort()
	return c
}

// addDifferingNames adds the names whose versions differ between two states.
func addDifferingNames(names map[name]struct{}, a, b *state) {
	if a == b {
		return
	}
	for i := range digest.Count {
		inA, inB := a.bucket(i), b.bucket(i)
		if inA == inB {
			continue
		}
		for n, e := range inA.all() {
			if other := inB.all()[n]; other == nil || other.version != e.version {
				names[n] = struct{}{}
			}
		}
		for n := range inB.all() {
			if inA.all()[n] == nil {
				names[n] = struct{}{}
			}
		}
	}
}

// contentSince returns the messages that lead from an older view to the
// snapshot's. shared tells that they are the ones that every stream of these
// audiences gets.
func (s *snapshot) contentSince(old, now *view, types typeSet) (c content, shared bool, err error) {
	if s.deltas != nil && old.revision+1 == s.revision && slices.Equal(old.audiences, now.audiences) {
		lists := make([][]*frame, 0, len(now.audiences))
		for _, audience := range now.audiences {
			d := s.deltas[audience]
			if d == nil {
				continue
			}
			list, err := d.frames()
			if err != nil {
				return content{}, false, fmt.Errorf("encoding what changed for audience %q: %w", audience, err)
			}
			lists = append(lists, list)
		}
		return content{shared: mergeFrames(types, lists...)}, true, nil
	}
	return content{own: now.changesSince(old, types)}, false, nil
}
