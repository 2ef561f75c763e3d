// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/reliability/syscalls"
)

// TestExitsOfRewriting kills the agent while it compacts its log, and while it
// brings it home from memory: a log is there, it is whole, and it says what the
// kernel has.
func TestExitsOfRewriting(t *testing.T) {
	r := random(t)
	set, _ := onDisk(t)
	set.prepare = nil
	w := start(t, set)
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	begins := func(c *syscalls.Call) bool { return c.Name == "openat" && strings.HasSuffix(c.Path, "/state.log.new") }
	// After the file has taken its place come calls of other matters.
	const calls = 7
	for _, n := range sample(r, calls, 3) {
		w.kill(t)
		w.lengthen(t)
		w.supervisor.KillAfter(begins, n)
		w.launch(t)
		w.exitOfRewriting(t, sum, fmt.Sprintf("compaction with an exit at call %d", n))
	}
	for _, n := range sample(r, calls, 3) {
		w.supervisor.Set(func(c *syscalls.Call) syscalls.Verdict {
			if strings.HasPrefix(c.Path, w.node.StateDir) && c.Name == "write" {
				return syscalls.Fail(unix.EIO)
			}
			return syscalls.Continue
		})
		w.apply(t, w.nextChange(t))
		w.waitProblem(t, "writes fail", "input/output error")
		w.supervisor.KillAfter(begins, n)
		w.exitOfRewriting(t, sum, fmt.Sprintf("coming home with an exit at call %d", n))
	}
	t.Log("figure:", sum)
}

// exitOfRewriting waits for the agent's exit while it rewrites its log, and checks
// what it left.
func (w *world) exitOfRewriting(t *testing.T, sum *tally, at string) {
	t.Helper()
	select {
	case <-w.agent.Process.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%s: nothing happened", at)
	}
	call := w.supervisor.Killed()
	if call == nil {
		t.Fatalf("%s: %v", at, w.agent.Process.Running())
	}
	sum.points++
	sum.calls[call.String()]++
	at += ", " + call.String()
	w.away(t, at, w.now, w.now)
	w.supervisor.Set(nil)
	w.launch(t)
	w.withoutCalculator(t, at)
	w.mustConverge(t, at)
}

// lengthen repeats what is in the log until it is to be compacted; the last state
// it tells of stays the same.
func (w *world) lengthen(t *testing.T) {
	t.Helper()
	path := filepath.Join(w.node.StateDir, "state.log")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const magic = 8
	records, whole := data[magic:], data
	for len(whole) < 3<<20 {
		whole = append(whole, records...)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
}
