// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/testbed"
)

// maxPressure is the part of a time in which something may wait for a CPU for
// the machine to count as quiet: an agent that starts alone on two cores makes
// some of its own threads wait.
const maxPressure = 0.25

// pressure is for how long something on the machine has waited for a CPU so far;
// ok is false on a kernel that does not tell.
func pressure(t *testing.T) (waited time.Duration, ok bool) {
	t.Helper()
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return 0, false
	}
	first, _, _ := strings.Cut(string(text), "\n")
	_, total, ok := strings.Cut(first, "total=")
	us, err := strconv.ParseInt(total, 10, 64)
	if !ok || err != nil {
		t.Fatalf("/proc/pressure/cpu: %q", first)
	}
	return time.Duration(us) * time.Microsecond, true
}

// queued is for how long threads of processes were ready to run and did not.
func queued(t *testing.T, processes ...*testbed.Process) (sum time.Duration) {
	t.Helper()
	for _, p := range processes {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID()))
		if err != nil || len(threads) == 0 {
			t.Fatalf("the threads of process %d: %v", p.PID(), err)
		}
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if errors.Is(err, fs.ErrNotExist) {
				continue // has ended
			}
			if fields := strings.Fields(string(text)); err == nil && len(fields) == 3 {
				ns, err := strconv.ParseInt(fields[1], 10, 64)
				if err != nil {
					t.Fatalf("%s: %v", thread, err)
				}
				sum += time.Duration(ns)
				continue
			}
			t.Fatalf("%s: %q, %v", thread, text, err)
		}
	}
	return sum
}

// starting is one start of the agent, measured.
type starting struct {
	took time.Duration
	cpu  time.Duration
	// idle is how much of it the agent neither ran nor waited for a CPU, nor
	// the calculator: what it takes however fast the machine is.
	idle time.Duration
	// quiet tells that nothing else made it slow.
	quiet bool
}

// better is the faster one of two; one on a quiet machine tells more.
func (s starting) better(than starting) bool {
	if s.quiet != than.quiet {
		return s.quiet
	}
	return s.took < than.took
}

func (s starting) String() string {
	text := fmt.Sprintf("in sync %v after exec; %v of CPU time, %v idle", s.took.Round(time.Millisecond),
		s.cpu.Round(time.Millisecond), s.idle.Round(time.Millisecond))
	if !s.quiet {
		text += "; not judged by the clock, as others used the machine's CPUs"
	}
	return text
}
