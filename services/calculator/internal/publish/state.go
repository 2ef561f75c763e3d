// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"sync"

	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// state is everything that one audience is given, at one revision. It is
// immutable. States of successive revisions share the buckets in which they do
// not differ, so that a successor costs what it changes and two states,
// however far apart, are compared by looking only at buckets that differ.
type state struct {
	buckets [digest.Count]*bucket

	// full is the whole state encoded, made when the first stream joins at
	// this state and shared by all that do.
	fullOnce sync.Once
	full     []*frame
	fullErr  error
}

// bucket holds the resources whose names fall into one bucket of the digest.
type bucket struct {
	entries map[name]*entry
	// digests has the digest for each type, so that the digest for an agent
	// that understands only some types needs no look at the entries.
	digests [maxTypes]uint64
}

func (s *state) lookup(n name) *entry {
	if s == nil {
		return nil
	}
	if b := s.buckets[bucketIndex(n)]; b != nil {
		return b.entries[n]
	}
	return nil
}

// bucket returns a bucket's content; nil if it has none.
func (s *state) bucket(i int) *bucket {
	if s == nil {
		return nil
	}
	return s.buckets[i]
}

func (b *bucket) all() map[name]*entry {
	if b == nil {
		return nil
	}
	return b.entries
}

// addDigests joins the digests of the announced types into digests.
func (s *state) addDigests(types typeSet, digests *digest.Buckets) {
	if s == nil {
		return
	}
	for i, b := range s.buckets {
		if b == nil {
			continue
		}
		for kind, d := range b.digests {
			if types.has(dataplanev1.ResourceType(kind)) {
				digests[i] ^= d
			}
		}
	}
}

// fullFrames encodes the whole state, once for all who ask.
func (s *state) fullFrames() ([]*frame, error) {
	if s == nil {
		return nil, nil
	}
	s.fullOnce.Do(func() {
		var all changes
		for _, b := range s.buckets {
			for _, e := range b.all() {
				all.upserts = append(all.upserts, e)
			}
		}
		all.sort()
		s.full, s.fullErr = all.frames()
	})
	return s.full, s.fullErr
}

func bucketIndex(n name) int {
	return digest.Bucket(&dataplanev1.ResourceName{Type: n.kind, Key: n.key})
}

func entryDigest(e *entry) uint64 {
	return digest.ResourceDigest(&dataplanev1.ResourceName{Type: e.name.kind, Key: e.name.key}, e.version)
}

// stateEditor collects the changes that lead from one state to its successor.
type stateEditor struct {
	next  *state
	owned [digest.Count]bool
	// before has, for every name that was touched, what the base state had:
	// the difference between base and successor.
	before map[name]*entry
}

func editState(base *state) *stateEditor {
	next := &state{}
	if base != nil {
		next.buckets = base.buckets
	}
	return &stateEditor{next: next, before: map[name]*entry{}}
}

// put adds or replaces a resource; the same version again changes nothing.
func (s *stateEditor) put(e *entry) {
	i := bucketIndex(e.name)
	old := s.next.buckets[i].all()[e.name]
	if old != nil && old.version == e.version {
		return
	}
	b := s.own(i)
	s.note(e.name, old)
	if old != nil {
		b.digests[old.name.kind] ^= entryDigest(old)
	}
	b.entries[e.name] = e
	b.digests[e.name.kind] ^= entryDigest(e)
}

// remove removes a resource; removing an absent one changes nothing.
func (s *stateEditor) remove(n name) {
	i := bucketIndex(n)
	old := s.next.buckets[i].all()[n]
	if old == nil {
		return
	}
	b := s.own(i)
	s.note(n, old)
	delete(b.entries, n)
	b.digests[n.kind] ^= entryDigest(old)
	if len(b.entries) == 0 {
		s.next.buckets[i] = nil
		s.owned[i] = false
	}
}

func (s *stateEditor) note(n name, old *entry) {
	if _, ok := s.before[n]; !ok {
		s.before[n] = old
	}
}

// own makes the bucket one that no other state shares.
func (s *stateEditor) own(i int) *bucket {
	if s.owned[i] {
		return s.next.buckets[i]
	}
	old := s.next.buckets[i]
	b := &bucket{entries: make(map[name]*entry, len(old.all())+1)}
	for n, e := range old.all() {
		b.entries[n] = e
	}
	if old != nil {
		b.digests = old.digests
	}
	s.next.buckets[i] = b
	s.owned[i] = true
	return b
}

// difference tells what the successor has other than its base, as it stands
// after all edits: what was changed and changed back does not show.
func (s *stateEditor) difference() changes {
	var c changes
	for n, old := range s.before {
		switch now := s.next.lookup(n); {
		case now == nil && old != nil:
			c.removals = append(c.removals, n)
		case now != nil && (old == nil || old.version != now.version):
			c.upserts = append(c.upserts, now)
		}
	}
	c.sort()
	return c
}

// empty tells that the state has no resource.
func (s *stateEditor) empty() bool {
	for _, b := range s.next.buckets {
		if b != nil {
			return false
		}
	}
	return true
}
