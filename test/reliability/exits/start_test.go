// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
)

// sample returns count of the numbers 1 to all, or all of them in a soak.
func sample(r *rand.Rand, all, count int) []int {
	numbers := make([]int, all)
	for i := range numbers {
		numbers[i] = i + 1
	}
	if reliability.Soak() || count >= all {
		return numbers
	}
	r.Shuffle(all, func(i, j int) { numbers[i], numbers[j] = numbers[j], numbers[i] })
	numbers = numbers[:count]
	slices.Sort(numbers)
	return numbers
}

// died waits until the agent was killed by the supervisor and ends its rule. It
// returns the call before which; nil if the agent converged instead, and then how
// many calls it made.
func (w *world) died(t *testing.T, when string) (call *syscalls.Call, calls int) {
	t.Helper()
	err := w.converge(time.Minute)
	calls = w.supervisor.Count()
	call = w.supervisor.Set(nil)
	if err != nil && (!errors.Is(err, errDied) || call == nil) {
		t.Fatalf("%s: %v", when, err)
	}
	if err == nil && call != nil {
		<-w.agent.Process.Done() // after it had converged
	}
	return call, calls
}

// note counts an exit before a call.
func (s *tally) note(call *syscalls.Call) {
	s.points++
	s.calls[call.String()]++
}

// TestExitsAtStart kills a starting agent before its n-th call, while it adopts
// what is in the kernel and has a change to program that came when it was away.
func TestExitsAtStart(t *testing.T) {
	r := reliability.Random(t)
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	w.exitsAtStart(t, r, sum, 12)
	sum.tell(t)
}

func (w *world) exitsAtStart(t *testing.T, r *rand.Rand, sum *tally, count int) {
	t.Helper()
	w.kill(t)
	w.supervisor.Set(nil)
	w.apply(t, w.nextChange(t))
	w.launch(t)
	w.mustConverge(t, "counting the calls of a start")
	calls := w.supervisor.Count()
	t.Logf("figure: a start with a change makes %d calls", calls)
	for _, n := range sample(r, calls, count) {
		w.kill(t)
		before := w.now
		w.apply(t, w.nextChange(t))
		w.supervisor.KillBefore(n)
		w.launch(t)
		call, _ := w.died(t, fmt.Sprintf("start with an exit before call %d", n))
		if call == nil {
			continue // a change needs some calls more or less
		}
		sum.note(call)
		at := fmt.Sprintf("start, killed before call %d, %s", n, call)
		w.away(t, at, before, w.now)
		w.launch(t)
		w.mustConverge(t, at+", restarted")
		w.checkTraffic(t, at)
	}
}

// withoutTCX lets the kernel look like one before 6.6.
func withoutTCX(c *syscalls.Call) syscalls.Verdict {
	if c.Name == "LINK_CREATE" && (c.Attach == ebpf.AttachTCXIngress || c.Attach == ebpf.AttachTCXEgress) {
		return syscalls.Fail(unix.EINVAL)
	}
	return syscalls.Continue
}

// TestExitsWithoutTCX does all of it on clsact filters: pods that come and go,
// starts, cleanups.
func TestExitsWithoutTCX(t *testing.T) {
	r := reliability.Random(t)
	w := start(t, settings{prepare: func(w *world) { w.supervisor.Always(withoutTCX) }})
	running := w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	w.changeTopology(t, r, sum, 3)
	w.exitsAtStart(t, r, sum, 4)
	if err := running.stop(); err != nil {
		t.Fatal(err)
	}
	w.traffic = nil
	w.exitsOfCleanup(t, r, sum, 2)
	sum.tell(t)
}
