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

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
)

// TestExitsOfRewriting kills the agent while it compacts its log, and while it
// brings it home from memory: a log is there, it is whole, and it says what the
// kernel has.
func TestExitsOfRewriting(t *testing.T) {
	r := reliability.Random(t)
	set, _ := onDisk(t)
	set.prepare = nil
	w := start(t, set)
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	begins := func(c *syscalls.Call) bool { return c.Name == "openat" && strings.HasSuffix(c.Path, "/state.log.new") }
	compact := func() {
		w.kill(t)
		w.lengthen(t)
	}
	compact()
	length := w.lengthOfRewriting(begins)
	w.launch(t)
	for _, n := range sample(r, w.rewritten(t, length), 3) {
		compact()
		w.supervisor.KillAfter(begins, n)
		w.launch(t)
		w.exitOfRewriting(t, sum, fmt.Sprintf("compaction with an exit at call %d", n))
	}
	away := func() {
		w.supervisor.Set(func(c *syscalls.Call) syscalls.Verdict {
			if strings.HasPrefix(c.Path, w.node.StateDir) && c.Name == "write" {
				return syscalls.Fail(unix.EIO)
			}
			return syscalls.Continue
		})
		w.apply(t, w.nextChange(t))
		w.waitProblem(t, "writes fail", "input/output error")
	}
	away()
	length = w.lengthOfRewriting(begins)
	for _, n := range sample(r, w.rewritten(t, length), 3) {
		away()
		w.supervisor.KillAfter(begins, n)
		w.exitOfRewriting(t, sum, fmt.Sprintf("coming home with an exit at call %d", n))
	}
	sum.tell(t)
}

// lengthOfRewriting sets a rule that disturbs nothing, and tells how many calls the
// next rewriting of the log makes: from the one that begins it until its directory
// is on the disk.
func (w *world) lengthOfRewriting(begins func(*syscalls.Call) bool) <-chan int {
	length, first := make(chan int, 1), 0
	w.supervisor.Set(func(c *syscalls.Call) syscalls.Verdict {
		if first == 0 && begins(c) {
			first = c.Number
		}
		if first != 0 && c.Name == "fsync" && filepath.Clean(c.Path) == filepath.Clean(w.node.StateDir) {
			select {
			case length <- c.Number - first + 1:
			default:
			}
		}
		return syscalls.Continue
	})
	return length
}

// rewritten waits for the end of a rewriting, and returns how many exit points
// there are: before each of its calls, and before the one after them.
func (w *world) rewritten(t *testing.T, length <-chan int) int {
	t.Helper()
	select {
	case n := <-length:
		w.mustConverge(t, "counting the calls of a rewriting")
		t.Logf("figure: a rewriting of the log makes %d calls", n)
		return n + 1
	case <-time.After(time.Minute):
		t.Fatal("the log was not rewritten")
		return 0
	}
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
	sum.note(call)
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
