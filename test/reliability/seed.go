// SPDX-License-Identifier: Apache-2.0

package reliability

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// seedVariable names the environment variable with the number that everything
// random is derived from, to run a failure once more.
const seedVariable = "MILLRACE_SEED"

// Seed is the number that a test derives everything random from: another one at
// each run, which it prints, or that of the environment.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("figure: %s=%d", seedVariable, seed)
	return seed
}

// Random is a source of random numbers that begins at [Seed].
func Random(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(Seed(t), 0))
}
