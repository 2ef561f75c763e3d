// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/millrace-project/millrace/test/reliability"
)

// sizes are flags that make all maps that can grow of that many entries.
func sizes(entries int) []string {
	var args []string
	for _, name := range []string{"frontends", "backends", "routes", "ids", "established", "embryonic"} {
		args = append(args, fmt.Sprintf("--max-%s=%d", name, entries))
	}
	return args
}

// TestExitsOfGrowth kills an agent before its n-th call while it replaces maps by
// larger ones at its start. No flow may notice, whatever maps there are two of;
// the next agent finishes it or begins anew.
func TestExitsOfGrowth(t *testing.T) {
	r := reliability.Random(t)
	entries := 1024
	w := start(t, settings{args: sizes(entries)})
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	larger := func() {
		entries += 256
		w.agent.SetArgs(sizes(entries)...)
	}
	w.kill(t)
	larger()
	w.supervisor.Set(nil)
	w.launch(t)
	w.mustConverge(t, "counting the calls of a growth")
	calls := w.supervisor.Count()
	t.Logf("figure: a start that replaces all maps makes %d calls", calls)
	for _, n := range sample(r, calls, 5) {
		w.kill(t)
		larger()
		w.exitOfGrowth(t, r, sum, n, larger)
	}
	sum.tell(t)
}

func (w *world) exitOfGrowth(t *testing.T, r *rand.Rand, sum *tally, n int, larger func()) {
	t.Helper()
	w.supervisor.KillBefore(n)
	w.launch(t)
	at := fmt.Sprintf("growth with an exit before call %d", n)
	call, _ := w.died(t, at)
	if call == nil {
		return
	}
	sum.note(call)
	at += ", " + call.String()
	// The maps by their names need not be those that programs read, so only what
	// clients see is asked.
	all := w.now.frontends(w.node)
	for range 3 {
		if err := w.ask(&kernel{frontends: all}, w.now, w.now); err != nil {
			t.Fatalf("%s, no agent runs: %v", at, err)
		}
	}
	if r.IntN(2) == 0 {
		larger() // than what was begun
	}
	w.launch(t)
	w.mustConverge(t, at+", restarted")
	w.checkTraffic(t, at)
}
