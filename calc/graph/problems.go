// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"slices"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// problemStore holds the problems by object, and what they were at the last
// flush.
type problemStore struct {
	problems map[model.Key][]problem.Problem
	before   map[model.Key][]problem.Problem
}

func newProblemStore() *problemStore {
	return &problemStore{
		problems: map[model.Key][]problem.Problem{},
		before:   map[model.Key][]problem.Problem{},
	}
}

// set replaces the problems of an object; they are sorted.
func (s *problemStore) set(key model.Key, problems []problem.Problem) {
	old := s.problems[key]
	if slices.Equal(old, problems) {
		return
	}
	if _, known := s.before[key]; !known {
		s.before[key] = old
	}
	if len(problems) == 0 {
		delete(s.problems, key)
	} else {
		s.problems[key] = problems
	}
}

// flush gives the objects whose problems changed since the last flush.
func (s *problemStore) flush() []ObjectProblems {
	var changed []ObjectProblems
	for key, before := range s.before {
		if now := s.problems[key]; !slices.Equal(before, now) {
			changed = append(changed, ObjectProblems{key, now})
		}
	}
	s.before = map[model.Key][]problem.Problem{}
	slices.SortFunc(changed, func(a, b ObjectProblems) int { return a.Object.Compare(b.Object) })
	return changed
}

// merge gives the problems of two sorted lists of one object, sorted.
func merge(a, b []problem.Problem) []problem.Problem {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	merged := slices.Concat(a, b)
	slices.SortFunc(merged, problem.Problem.Compare)
	return merged
}
