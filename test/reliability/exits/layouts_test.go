// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// otherTables are the maps that a start finds in another layout. Those of flows
// and sockets go on as they are, so both generations of programs share them.
const otherTables = "config|frontends_v.|backends_v.|routes_v."

// TestExitsOfLayouts kills an agent before its n-th call while its programs take
// over from those of a release with other layouts. All that it leaves must answer
// at every frontend, and the next agent must finish it.
func TestExitsOfLayouts(t *testing.T) {
	r := reliability.Random(t)
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	sum := newTally()
	_, calls := w.exitOfLayouts(t, sum, "counting the calls of a change of layouts", nil)
	t.Logf("figure: a start that changes layouts makes about %d calls until nothing is left of the past", calls)
	// The takeover is a few calls of many: what it leaves after each of its steps
	// is tried at every run.
	for _, p := range []struct{ before, name, mapName string }{
		{"the past's IPv6 routes go", "MAP_DELETE_ELEM", "routes_v6"},
		{"its frontends go", "MAP_DELETE_ELEM", "frontends_v4"},
		{"its IPv6 frontends go", "MAP_DELETE_ELEM", "frontends_v6"},
		{"its links go", "LINK_DETACH", ""},
	} {
		rule := func(c *syscalls.Call) syscalls.Verdict {
			if c.Name == p.name && (p.mapName == "" || c.Map == p.mapName) {
				return syscalls.Kill
			}
			return syscalls.Continue
		}
		if call, _ := w.exitOfLayouts(t, sum, "killed before "+p.before, rule); call == nil {
			t.Fatalf("no call was made with which %s", p.before)
		}
	}
	for _, n := range sample(r, calls, 2) {
		w.exitOfLayouts(t, sum, fmt.Sprintf("killed before call %d", n), func(c *syscalls.Call) syscalls.Verdict {
			if c.Number >= n {
				return syscalls.Kill
			}
			return syscalls.Continue
		})
	}
	sum.tell(t)
}

// exitOfLayouts lets an agent find other layouts, asks all frontends where the
// rule has killed it, and has another one finish. It returns what [world.died] does.
func (w *world) exitOfLayouts(t *testing.T, sum *tally, at string, rule syscalls.Rule) (call *syscalls.Call, calls int) {
	t.Helper()
	w.kill(t)
	if err := w.node.ForgeLayouts(otherTables); err != nil {
		t.Fatal(err)
	}
	forged, err := os.Readlink(w.node.LayoutsRecord())
	if err != nil {
		t.Fatal(err)
	}
	w.supervisor.Set(rule)
	w.launch(t)
	w.takenOver(t, at, forged)
	if call, calls = w.died(t, at); call == nil {
		w.checkTraffic(t, at)
		return nil, calls
	}
	sum.note(call)
	at = fmt.Sprintf("%s, %s", at, call)
	all := w.now.frontends(w.node)
	for f := range all {
		if !answers(f) {
			continue
		}
		if err := w.askOne(f, all, all); err != nil {
			t.Fatalf("%s, no agent runs: %v", at, err)
		}
	}
	w.checkTraffic(t, at)
	w.launch(t)
	w.takenOver(t, at+", restarted", forged)
	w.mustConverge(t, at+", restarted")
	w.checkTraffic(t, at+", restarted")
	return call, calls
}

// takenOver waits until nothing is left of the generation whose record of layouts
// was forged, or the agent was killed.
func (w *world) takenOver(t *testing.T, at, forged string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := testbed.Eventually(ctx, func() error {
		if err := w.agent.Process.Running(); err != nil {
			if w.supervisor.Killed() != nil {
				return nil
			}
			t.Fatalf("%s: %v\n%s", at, err, w.agent.Process.LogTail(10))
		}
		record, err := os.Readlink(w.node.LayoutsRecord())
		if err != nil {
			return err
		}
		if record == forged {
			return errors.New("nothing is set aside yet")
		}
		for _, name := range []string{"past~", "past"} {
			if _, err := os.Lstat(filepath.Join(w.node.BPFDir, name)); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s is there (%v)", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
}
