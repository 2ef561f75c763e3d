// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"os"
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
