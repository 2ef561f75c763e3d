// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/millrace-project/millrace/calc/graph"
)

func run(t testing.TB, label string, steps [][]graph.Change) *checker {
	t.Helper()
	c := newChecker(t)
	for i, changes := range steps {
		c.step(fmt.Sprintf("%s, step %d", label, i), changes)
	}
	c.finish()
	return c
}

// FuzzSequences decodes bytes into a sequence of changes; after each step the
// graph must agree with a recompute from scratch and with the oracle. Run it
// with -fuzzminimizetime 1x: minimizing sequences takes far longer than finding
// them.
func FuzzSequences(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(randomBytes(seed, 300))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		run(t, "fuzz", (&source{data}).steps(20))
	})
}

func randomBytes(seed uint64, n int) []byte {
	random := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	return data
}

func TestRandomSequences(t *testing.T) {
	t.Parallel()
	for seed := range uint64(150) {
		run(t, fmt.Sprint("seed ", seed), (&source{randomBytes(seed, 2000)}).steps(25))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
