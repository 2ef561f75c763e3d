// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
)

// ofPass tells the calls of the passes over conntrack, which remove what is over.
// How many there are, and when, depends on the traffic.
func ofPass(c *syscalls.Call) bool {
	return c.Name == "MAP_LOOKUP_AND_DELETE_ELEM" && (strings.HasPrefix(c.Map, "embryonic_") || strings.HasPrefix(c.Map, "established_"))
}

// TestExitsOfPasses kills the agent before the n-th entry that its passes over
// conntrack remove. A record may so be gone whose aliases are left.
func TestExitsOfPasses(t *testing.T) {
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	w.supervisor.Ignore(func(c *syscalls.Call) bool { return !ofPass(c) })
	sum := newTally()
	points := 3
	if reliability.Soak() {
		points = 30
	}
	for n := range points {
		w.supervisor.KillBefore(n + 1)
		select {
		case <-w.agent.Process.Done():
		case <-time.After(time.Minute):
			t.Fatalf("no pass removed %d entries, with traffic, in a minute", n+1)
		}
		call := w.supervisor.Set(nil)
		if call == nil {
			t.Fatalf("the agent ended by itself: %v\n%s", w.agent.Process.Err(), w.agent.Process.LogTail(10))
		}
		sum.note(call)
		at := fmt.Sprintf("killed before a pass removed entry %d, %s", n+1, call)
		w.checkTraffic(t, at)
		w.launch(t)
		w.mustConverge(t, at+", restarted")
		w.checkTraffic(t, at)
	}
	sum.tell(t)
}
