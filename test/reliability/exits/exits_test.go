// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/reliability"
)

// tally counts exit points.
type tally struct {
	points  int
	changes int
	calls   map[string]int
}

// TestExits makes changes of services and kills the agent before its n-th call
// of each. In between the kernel must be in the state before or after; restarted
// the agent must converge; and traffic that runs all the while must not notice.
func TestExits(t *testing.T) {
	r := random(t)
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	sum := &tally{calls: map[string]int{}}
	changes := 26
	if reliability.Soak() {
		changes = 120
	}
	began := time.Now()
	for sum.changes < changes && !t.Failed() {
		m := mutations[r.IntN(len(mutations))]
		after := w.now.clone()
		if !m.apply(r, after, w.backends) {
			continue
		}
		sum.changes++
		w.change(t, r, sum, fmt.Sprintf("change %d (%s)", sum.changes, m.name), after)
	}
	t.Logf("%d changes, %d exit points in %v: %v", sum.changes, sum.points, time.Since(began).Round(time.Second), sum.calls)
}

// change makes a change with an exit: at one random call, or there and back at
// every one until none is left.
func (w *world) change(t *testing.T, r *rand.Rand, sum *tally, name string, after model) {
	t.Helper()
	before := w.now
	if !reliability.Soak() {
		w.exitAt(t, sum, name, 1+r.IntN(10), after)
		return
	}
	for n := 1; ; n++ {
		there := w.exitAt(t, sum, name, n, after)
		back := w.exitAt(t, sum, name+" undone", n, before)
		if !there && !back || t.Failed() {
			break
		}
	}
	w.exitAt(t, sum, name, 1<<30, after)
}

// exitAt makes a change, kills the agent before its n-th call and starts it
// again; false if it converged in fewer calls.
func (w *world) exitAt(t *testing.T, sum *tally, name string, n int, after model) bool {
	t.Helper()
	before := w.now
	w.supervisor.KillBefore(n)
	w.apply(t, after)
	err := w.converge(30 * time.Second)
	if err == nil {
		w.supervisor.Set(nil)
		return w.checkTraffic(t, name) && false
	}
	call := w.supervisor.Killed()
	if !errors.Is(err, errDied) || call == nil {
		t.Fatalf("%s: %v", name, err)
	}
	sum.points++
	sum.calls[call.String()]++
	at := fmt.Sprintf("%s, killed before call %d, %s", name, n, call)
	w.away(t, at, before, after)
	w.supervisor.Set(nil)
	w.launch(t)
	w.mustConverge(t, at+", restarted")
	return w.checkTraffic(t, at)
}

// checkTraffic tells at which exit traffic was interrupted.
func (w *world) checkTraffic(t *testing.T, when string) bool {
	t.Helper()
	if w.traffic == nil {
		return true
	}
	if err := w.traffic.err(); err != nil {
		t.Fatalf("%s: traffic was interrupted: %v", when, err)
	}
	return true
}
