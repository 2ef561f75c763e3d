// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
)

// An expander makes batches of changes that lead through worlds, in its own
// way. All end in the last world.
type expander struct {
	name   string
	expand func(worlds []world) [][]graph.Change
}

func identity(worlds []world) [][]graph.Change {
	var steps [][]graph.Change
	last := world{}
	for _, next := range worlds {
		steps = append(steps, last.changesTo(next))
		last = next
	}
	return steps
}

// overSteps makes an expander from one that changes single batches.
func overSteps(change func([]graph.Change) [][]graph.Change) func([]world) [][]graph.Change {
	return func(worlds []world) [][]graph.Change {
		var steps [][]graph.Change
		for _, step := range identity(worlds) {
			steps = append(steps, change(step)...)
		}
		return steps
	}
}

func shuffled(seed uint64) func([]world) [][]graph.Change {
	random := rand.New(rand.NewPCG(seed, 1))
	return overSteps(func(step []graph.Change) [][]graph.Change {
		random.Shuffle(len(step), func(i, j int) { step[i], step[j] = step[j], step[i] })
		// Cut into batches of random size, so that halves of a state show.
		var steps [][]graph.Change
		for len(step) > 0 {
			n := random.IntN(len(step)) + 1
			steps = append(steps, step[:n])
			step = step[n:]
		}
		return steps
	})
}

func expanders() []expander {
	list := []expander{
		{"identity", identity},
		{"reversed order", overSteps(func(step []graph.Change) [][]graph.Change {
			slices.Reverse(step)
			return [][]graph.Change{step}
		})},
		{"there and back", func(worlds []world) [][]graph.Change {
			back := slices.Clone(worlds)
			slices.Reverse(back)
			return identity(slices.Concat(worlds, back, worlds))
		}},
		{"split", overSteps(func(step []graph.Change) [][]graph.Change {
			var steps [][]graph.Change
			for _, change := range step {
				steps = append(steps, []graph.Change{change})
			}
			return steps
		})},
		{"squashed", func(worlds []world) [][]graph.Change {
			return [][]graph.Change{slices.Concat(identity(worlds)...)}
		}},
		{"emptied between", func(worlds []world) [][]graph.Change {
			var emptied []world
			for _, w := range worlds {
				emptied = append(emptied, w, world{})
			}
			return identity(append(emptied, worlds[len(worlds)-1]))
		}},
		{"emptied within", func(worlds []world) [][]graph.Change {
			var steps [][]graph.Change
			last := world{}
			for _, next := range worlds {
				steps = append(steps, slices.Concat(last.changesTo(world{}), world{}.changesTo(next)))
				last = next
			}
			return steps
		}},
		{"duplicated", overSteps(func(step []graph.Change) [][]graph.Change {
			return [][]graph.Change{slices.Concat(step, step), step}
		})},
		{"spurious deletes", overSteps(func(step []graph.Change) [][]graph.Change {
			var more []graph.Change
			for _, change := range step {
				key := change.Key
				more = append(more, graph.Gone(key), graph.Gone(key), change)
				for _, kind := range model.Kinds() {
					more = append(more, graph.Gone(model.Key{Kind: kind, Namespace: "never", Name: "was"}))
				}
			}
			return [][]graph.Change{more}
		})},
	}
	for seed := range uint64(6) {
		list = append(list, expander{fmt.Sprint("shuffled by ", seed), shuffled(seed)})
	}
	return list
}

func TestSequences(t *testing.T) {
	t.Parallel()
	for _, sequence := range sequences() {
		t.Run(sequence.name, func(t *testing.T) {
			t.Parallel()
			var want []string
			for _, expander := range expanders() {
				c := run(t, expander.name, expander.expand(sequence.worlds))
				got := dump(t, c.graph)
				if want == nil {
					want = got
				}
				// Replicas that saw different histories must agree byte for byte.
				if diff := difference(got, want); diff != "" {
					t.Fatalf("%s ends differently:\n%s", expander.name, diff)
				}
				c.step("emptied at the end", c.world.changesTo(world{}))
				if rest := dump(t, c.graph); len(rest) > 0 {
					t.Fatalf("%s leaves residue: %q", expander.name, rest)
				}
				if rest := graph.Residue(c.graph); rest != "" {
					t.Fatalf("%s leaves indexes behind: %s", expander.name, rest)
				}
			}
		})
	}
}

// TestReplicas feeds the same objects in other orders and batches.
func TestReplicas(t *testing.T) {
	t.Parallel()
	final := world{}
	for _, step := range (&source{randomBytes(7, 6000)}).steps(200) {
		final.apply(step)
	}
	want := dump(t, fresh(final))
	for seed := range uint64(10) {
		random := rand.New(rand.NewPCG(seed, 2))
		g := graph.New()
		changes := world{}.changesTo(final)
		random.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
		for len(changes) > 0 {
			n := random.IntN(min(9, len(changes))) + 1
			g.Apply(changes[:n])
			changes = changes[n:]
		}
		if diff := difference(dump(t, g), want); diff != "" {
			t.Fatalf("seed %d: replicas differ:\n%s", seed, diff)
		}
	}
}
