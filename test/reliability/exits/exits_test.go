// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// tally counts exit points.
type tally struct {
	points  int
	changes int
	calls   map[string]int
	// length is how many calls a change of a kind was seen to need, in order to
	// choose among them.
	length map[string]int
}

func newTally() *tally { return &tally{calls: map[string]int{}, length: map[string]int{}} }

// one chooses a call of a change of that kind.
func (s *tally) one(r *rand.Rand, kind string) int {
	if s.length[kind] == 0 {
		s.length[kind] = 5
	}
	return 1 + r.IntN(s.length[kind])
}

// String tells how many exits there were, and before which calls.
func (s *tally) String() string {
	return fmt.Sprintf("%d changes, %d exit points: %v", s.changes, s.points, s.calls)
}

// tell prints the tally, and fails a test that killed nothing.
func (s *tally) tell(t *testing.T) {
	t.Helper()
	t.Log("figure:", s)
	if s.points == 0 {
		t.Error("not a single exit was made")
	}
}

// TestExits makes changes of services and kills the agent before its n-th call
// of each. In between the kernel must be in the state before or after; restarted
// the agent must converge; and traffic that runs all the while must not notice.
func TestExits(t *testing.T) {
	r := reliability.Random(t)
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	defer sum.tell(t)
	// In a soak one round of pods and nodes takes all of their exits.
	changes, topologyAt, turns := 40, 10, 2
	if reliability.Soak() {
		changes, topologyAt = 120, 60
	}
	for i := range changes {
		if i%topologyAt == topologyAt-1 {
			w.changeTopology(t, r, sum, turns)
		}
		for changed := false; !changed; {
			m := mutations[r.IntN(len(mutations))]
			after := w.now.clone()
			if changed = m.apply(r, after, w.backends); changed {
				w.change(t, r, sum, m.name, after)
			}
		}
	}
}

// change makes a change with an exit: at one random call, or there and back at
// every one until none is left.
func (w *world) change(t *testing.T, r *rand.Rand, sum *tally, name string, after model) {
	t.Helper()
	before := w.now
	there := func() { w.apply(t, after) }
	back := func() { w.apply(t, before) }
	if !reliability.Soak() {
		w.exitAt(t, sum, name, sum.one(r, name), there)
		return
	}
	for n := 1; ; n++ {
		one := w.exitAt(t, sum, name, n, there)
		other := w.exitAt(t, sum, name+" undone", n, back)
		if !one && !other {
			break
		}
	}
	w.exitAt(t, sum, name, 1<<30, there)
}

// changeTopology does the same with pods and nodes: some random exits, or all.
func (w *world) changeTopology(t *testing.T, r *rand.Rand, sum *tally, turns int) {
	t.Helper()
	for _, c := range topologies {
		for n := 1; ; n++ {
			come, leave := n, n
			if !reliability.Soak() {
				if n > turns {
					break
				}
				come, leave = sum.one(r, c.name+" comes"), sum.one(r, c.name+" goes")
			}
			there := w.exitAt(t, sum, c.name+" comes", come, func() { c.there(t, w) })
			back := w.exitAt(t, sum, c.name+" goes", leave, func() { c.back(t, w) })
			if !there && !back && reliability.Soak() {
				break
			}
		}
	}
}

// exitAt makes a change, kills the agent before its n-th call and starts it
// again; false if it converged in fewer calls.
func (w *world) exitAt(t *testing.T, sum *tally, name string, n int, change func()) bool {
	t.Helper()
	before := w.now
	sum.changes++
	w.supervisor.KillBefore(n)
	change()
	call, calls := w.died(t, name)
	if call == nil {
		sum.length[name] = calls + 1
		w.checkTraffic(t, name)
		return false
	}
	sum.note(call)
	at := fmt.Sprintf("change %d, %s, killed before call %d, %s", sum.changes, name, n, call)
	w.away(t, at, before, w.now)
	if !w.fromLog(t, sum, at, before) {
		w.launch(t)
	}
	w.mustConverge(t, at+", restarted")
	w.checkTraffic(t, at)
	return true
}

// fromLog starts the agent without a calculator: from its log it completes the
// change, or leaves it undone if nothing of it was in the kernel, but never takes
// back what was. What the change removes may stay until calculators say that
// they have said everything. It is done for changes that had begun in the kernel,
// and for some of the others; false if not.
func (w *world) fromLog(t *testing.T, sum *tally, at string, before model) bool {
	t.Helper()
	was, will := before.frontends(w.node), w.now.frontends(w.node)
	k, err := readKernel(w.node)
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
	begun := false
	for f := range k.frontends {
		begun = begun || !k.frontends[f].equal(was[f])
	}
	for f := range was {
		_, there := k.frontends[f]
		begun = begun || !there
	}
	if !begun && sum.points%8 != 0 {
		return false
	}
	states := []map[frontend]answer{will}
	if changed := differing(before, w.now); changed > 1 {
		states = append(states, was) // they may have come one by one
	}
	stale := maps.Clone(will)
	for f, a := range was {
		if _, wanted := will[f]; !wanted {
			stale[f] = a
		}
	}
	if err := w.stack.Calculator.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.launch(t)
	err = testbed.Within(time.Minute, func() error {
		if err := w.metric("millrace_agent_in_sync 0"); err != nil {
			return err
		}
		k, err := readKernel(w.node)
		if err != nil {
			return err
		}
		if err = k.is(append(states, stale)...); err != nil && !begun && k.is(was) == nil {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s, started without a calculator (change begun: %v): %v", at, begun, err)
	}
	if err := w.stack.Calculator.Start(); err != nil {
		t.Fatal(err)
	}
	return true
}

// checkTraffic tells at which exit traffic was interrupted.
func (w *world) checkTraffic(t *testing.T, when string) {
	t.Helper()
	if w.traffic == nil {
		return
	}
	if err := w.traffic.err(); err != nil {
		t.Fatalf("%s: traffic was interrupted: %v", when, err)
	}
}

// differing counts the services that differ.
func differing(a, b model) int {
	n := 0
	for name := range a {
		if fmt.Sprint(a[name]) != fmt.Sprint(b[name]) {
			n++
		}
	}
	for name := range b {
		if _, ok := a[name]; !ok {
			n++
		}
	}
	return n
}
