// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"maps"
	"slices"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/canonical"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// placed is a resource with its audience.
type placed struct {
	resource *dataplanev1.Resource
	audience audience.Audience
}

func (p placed) same(other placed) bool {
	if p.resource == nil || other.resource == nil {
		return p.resource == other.resource
	}
	return p.audience == other.audience && p.resource.Version == other.resource.Version
}

// store holds the resources and what they were at the last flush. A name has
// one audience.
type store struct {
	resources map[Name]placed
	before    map[Name]placed // of what may have changed since the last flush
	// Names by audience, but for audience.All, which has nearly all.
	narrow        map[audience.Audience]map[Name]struct{}
	members       map[string]struct{}
	membersBefore map[string]bool
}

func newStore() *store {
	return &store{
		resources:     map[Name]placed{},
		before:        map[Name]placed{},
		narrow:        map[audience.Audience]map[Name]struct{}{},
		members:       map[string]struct{}{},
		membersBefore: map[string]bool{},
	}
}

// put gives a resource its state, unless it has it already.
func (s *store) put(name Name, to audience.Audience, resource *dataplanev1.Resource) {
	resource.Version = canonical.Version(resource)
	now := placed{resource, to}
	old, exists := s.resources[name]
	if exists && old.same(now) {
		return // what was handed out stays the same object
	}
	s.remember(name, old)
	if exists && old.audience != to {
		s.leave(name, old.audience)
	}
	s.resources[name] = now
	if to != audience.All {
		names := s.narrow[to]
		if names == nil {
			names = map[Name]struct{}{}
			s.narrow[to] = names
		}
		names[name] = struct{}{}
	}
}

// remove takes a resource away, if there is one of that name.
func (s *store) remove(name Name) {
	old, exists := s.resources[name]
	if !exists {
		return
	}
	s.remember(name, old)
	s.leave(name, old.audience)
	delete(s.resources, name)
}

func (s *store) remember(name Name, old placed) {
	if _, known := s.before[name]; !known {
		s.before[name] = old
	}
}

func (s *store) leave(name Name, from audience.Audience) {
	if from == audience.All {
		return
	}
	delete(s.narrow[from], name)
	if len(s.narrow[from]) == 0 {
		delete(s.narrow, from)
	}
}

// setMember notes whether a node is part of the cluster.
func (s *store) setMember(node string, member bool) {
	_, was := s.members[node]
	if was == member {
		return
	}
	if _, known := s.membersBefore[node]; !known {
		s.membersBefore[node] = was
	}
	if member {
		s.members[node] = struct{}{}
	} else {
		delete(s.members, node)
	}
}

// audiencesOf gives the audiences of a node of the cluster.
func audiencesOf(node string) []audience.Audience {
	return []audience.Audience{audience.All, audience.Node(node)}
}

// flush gives what changed since the last flush.
func (s *store) flush() ([]Update, []Membership) {
	var upserts, removals []Update
	for name, before := range s.before {
		now := s.resources[name]
		if before.same(now) {
			if before.resource != nil {
				// Back at what it was: holders of the old object keep it.
				s.resources[name] = before
			}
			continue
		}
		if before.resource != nil && (now.resource == nil || now.audience != before.audience) {
			removals = append(removals, Update{Name: name, Audience: before.audience})
		}
		if now.resource != nil {
			upserts = append(upserts, Update{name, now.audience, now.resource})
		}
	}
	s.before = map[Name]placed{} // clearing would cost its greatest size ever
	slices.SortFunc(upserts, compareUpdates)
	slices.SortFunc(removals, func(a, b Update) int { return compareUpdates(b, a) })
	var members []Membership
	for node, was := range s.membersBefore {
		if _, is := s.members[node]; is && !was {
			members = append(members, Membership{node, audiencesOf(node)})
		} else if !is && was {
			members = append(members, Membership{Node: node})
		}
	}
	s.membersBefore = map[string]bool{}
	slices.SortFunc(members, compareMembers)
	return append(upserts, removals...), members
}

func compareUpdates(a, b Update) int {
	if order := a.Name.Compare(b.Name); order != 0 {
		return order
	}
	return a.Audience.Compare(b.Audience)
}

// names gives the names of an audience's resources, sorted.
func (s *store) names(of audience.Audience) []Name {
	var names []Name
	if of != audience.All {
		names = slices.Collect(maps.Keys(s.narrow[of]))
	} else {
		for name, p := range s.resources {
			if p.audience == audience.All {
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, Name.Compare)
	return names
}
