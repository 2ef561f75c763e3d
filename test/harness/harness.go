// SPDX-License-Identifier: Apache-2.0

// Package harness has what tests on a testbed begin and end with.
package harness

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/testbed"
)

// Main runs a package's tests when binaries name the programs, which are built
// into a directory of its own if they are not built yet. Where there can be no
// testbed none are, and tests skip. It returns the status to exit with.
func Main(m *testing.M, binaries *testbed.Binaries) int {
	if testbed.Supported() == nil {
		dir, err := os.MkdirTemp("", "millrace-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if *binaries, err = testbed.BuildBinaries(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// Limit is a context that ends with the test or after the time.
func Limit(t *testing.T, after time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), after)
	t.Cleanup(cancel)
	return ctx
}

// lines is how much of what a program said is shown of a test that failed.
const lines = 30

// Close closes a cluster and calls then, in this order, since what watches an API
// server goes before it. If the test has failed it shows what the programs that
// run said last.
func Close(t *testing.T, c *testbed.Cluster, then ...func() error) {
	t.Helper()
	if t.Failed() {
		for _, process := range c.Processes() {
			if !strings.HasPrefix(process.Name, "probe-") {
				t.Logf("%s:\n%s", process.Name, process.LogTail(lines))
			}
		}
	}
	for _, end := range append([]func() error{c.Close}, then...) {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
}

// Logs shows what a stack's programs said last, also those that have ended.
func Logs(t *testing.T, stack *testbed.Stack) {
	t.Helper()
	if stack.Calculator != nil && stack.Calculator.Process != nil {
		t.Logf("calculator:\n%s", stack.Calculator.Process.LogTail(lines))
	}
	for _, agent := range stack.Agents {
		if agent.Process != nil {
			t.Logf("agent of %s:\n%s", agent.Node.Name, agent.Process.LogTail(lines))
		}
	}
}
