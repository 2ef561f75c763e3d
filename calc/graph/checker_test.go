// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// checker feeds a graph and, after every step, holds it against a recompute
// from scratch, against what a consumer of the outputs has gathered, and
// against the oracle.
type checker struct {
	t     testing.TB
	graph *graph.Graph
	world world

	// What a consumer knows from the outputs alone.
	resources map[placedName]*dataplanev1.Resource
	problems  map[model.Key][]problem.Problem
	members   map[string][]audience.Audience

	// Everything ever handed out with its bytes at that time.
	handedOut map[*dataplanev1.Resource]string
}

type placedName struct {
	audience audience.Audience
	name     graph.Name
}

func newChecker(t testing.TB) *checker {
	return &checker{
		t: t, graph: graph.New(), world: world{},
		resources: map[placedName]*dataplanev1.Resource{},
		problems:  map[model.Key][]problem.Problem{},
		members:   map[string][]audience.Audience{},
		handedOut: map[*dataplanev1.Resource]string{},
	}
}

// step applies one batch of changes and checks everything.
func (c *checker) step(label string, changes []graph.Change) {
	c.t.Helper()
	output := c.graph.Apply(changes)
	c.world.apply(changes)
	c.consume(label, output)
	got := dump(c.t, c.graph)
	if diff := difference(got, dump(c.t, fresh(c.world))); diff != "" {
		c.t.Fatalf("%s: differs from a recompute from scratch:\n%s", label, diff)
	}
	if diff := difference(c.gathered(), got); diff != "" {
		c.t.Fatalf("%s: outputs do not add up to the state:\n%s", label, diff)
	}
	if diff := difference(flatten(c.t, c.graph), oracle(c.world)); diff != "" {
		c.t.Fatalf("%s: differs from the oracle:\n%s", label, diff)
	}
	if again := c.graph.Flush(); !again.Empty() {
		c.t.Fatalf("%s: a second flush gives %v", label, again)
	}
}

// consume applies an output as a holder of everything would.
func (c *checker) consume(label string, output graph.Output) {
	c.t.Helper()
	var upserts, removals []graph.Update
	for _, update := range output.Updates {
		if update.Resource != nil {
			if len(removals) > 0 {
				c.t.Fatalf("%s: upsert of %v after a removal", label, update.Name)
			}
			upserts = append(upserts, update)
		} else {
			removals = append(removals, update)
		}
	}
	sorted := func(a, b graph.Update) int {
		if order := a.Name.Compare(b.Name); order != 0 {
			return order
		}
		return a.Audience.Compare(b.Audience)
	}
	slices.Reverse(removals)
	if !slices.IsSortedFunc(upserts, sorted) || !slices.IsSortedFunc(removals, sorted) {
		c.t.Fatalf("%s: updates are out of order", label)
	}
	for _, update := range removals {
		key := placedName{update.Audience, update.Name}
		if c.resources[key] == nil {
			c.t.Fatalf("%s: removal of %v, which %v has not", label, update.Name, update.Audience)
		}
		delete(c.resources, key)
	}
	for _, update := range upserts {
		key := placedName{update.Audience, update.Name}
		if held := c.resources[key]; held != nil && held.GetVersion() == update.Resource.GetVersion() {
			c.t.Fatalf("%s: %v of %v is sent without having changed", label, update.Name, update.Audience)
		}
		if got := nameOf(update.Resource.GetName()); got != update.Name {
			c.t.Fatalf("%s: %v is named %v", label, update.Name, got)
		}
		c.resources[key] = update.Resource
		c.handedOut[update.Resource] = marshal(c.t, update.Resource)
	}
	for _, changed := range output.Problems {
		if slices.Equal(c.problems[changed.Object], changed.Problems) {
			c.t.Fatalf("%s: problems of %v are told without having changed", label, changed.Object)
		}
		c.problems[changed.Object] = changed.Problems
	}
	for _, member := range output.Members {
		if slices.Equal(c.members[member.Node], member.Audiences) {
			c.t.Fatalf("%s: membership of %v is told without having changed", label, member.Node)
		}
		if member.Audiences == nil {
			delete(c.members, member.Node)
		} else {
			c.members[member.Node] = member.Audiences
		}
	}
}

// gathered is the dump of what the consumer knows.
func (c *checker) gathered() []string {
	var keys []placedName
	for key := range c.resources {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b placedName) int {
		if order := a.audience.Compare(b.audience); order != 0 {
			return order
		}
		return a.name.Compare(b.name)
	})
	var lines []string
	for _, key := range keys {
		lines = append(lines, resourceLine(c.t, key.audience, c.resources[key]))
	}
	var members, problems []string
	for node, audiences := range c.members {
		members = append(members, fmt.Sprint("member ", node, audiences))
	}
	slices.Sort(members)
	var all []problem.Problem
	for _, list := range c.problems {
		all = append(all, list...)
	}
	slices.SortFunc(all, problem.Problem.Compare)
	for _, p := range all {
		problems = append(problems, "problem "+p.String())
	}
	return slices.Concat(lines, members, problems)
}

// finish checks that nothing handed out was changed afterwards.
func (c *checker) finish() {
	c.t.Helper()
	for resource, before := range c.handedOut {
		if after := marshal(c.t, resource); after != before {
			c.t.Errorf("%v was changed after it was handed out", resource.GetName())
		}
	}
}
