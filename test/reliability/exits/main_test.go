// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) {
	syscalls.Launch()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testbed.Supported() == nil {
		dir, err := os.MkdirTemp("", "millrace-exits-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if binaries, err = testbed.BuildBinaries(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// seedVariable names the environment variable with a seed to repeat.
const seedVariable = "MILLRACE_SEED"

// random is seeded anew at each run, and tells its seed.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("figure: %s=%d", seedVariable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}
