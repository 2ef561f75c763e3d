// SPDX-License-Identifier: Apache-2.0

package ctgrowth

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestGrowth opens connections until the maps have grown several times, while
// all that are open are used; then lets maps grow by order and kills the agent in
// the middle of it, again and again.
func TestGrowth(t *testing.T) {
	random := reliability.Random(t)
	w := start(t)
	perLane, kills := 30, 3
	if reliability.Soak() {
		perLane, kills = 400, 100
	}
	stop := w.keepBusy()
	var wait sync.WaitGroup
	for _, l := range w.lanes {
		wait.Go(func() {
			for range perLane {
				w.open(l)
			}
		})
	}
	wait.Wait()
	maps := w.settled()
	largest := uint32(0)
	for _, family := range []string{"v4", "v6"} {
		m := maps["established_"+family]
		// Two entries and more a connection.
		if want := uint32(2 * perLane * len(w.lanes) / 2); m.GetEntries() < want || m.GetMaxEntries() < want {
			t.Errorf("%s holds %d of %d entries, want %d and more", m.GetName(), m.GetEntries(), m.GetMaxEntries(), want)
		}
		t.Logf("figure: %s: from %d to %d entries, %d used", m.GetName(), tiny, m.GetMaxEntries(), m.GetEntries())
		largest = max(largest, m.GetMaxEntries())
	}
	w.noProblems()
	interrupted, kill := 0, 0
	// Some more if none came while entries moved.
	for ; kill < kills || interrupted == 0 && kill < 10*kills; kill++ {
		var calls sync.WaitGroup
		size := 2*largest + uint32(64*kill)
		for _, name := range []string{"established_v4", "embryonic_v4", "established_v6", "embryonic_v6"} {
			calls.Go(func() {
				// It fails when the agent is killed before it answers.
				w.agent.GrowMap(context.Background(), &agentv1.GrowMapRequest{Name: name, MaxEntries: size}) //nolint:errcheck
			})
		}
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond) // the instant is what differs
		if maps, err := w.maps(); err == nil && len(maps) > 4 {
			interrupted++
		}
		if err := w.agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		calls.Wait()
		if err := w.agent.Start(); err != nil {
			t.Fatal(err)
		}
		if err := w.agent.WaitInSync(harness.Limit(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	w.settled()
	stop()
	w.all()
	t.Logf("figure: %d kills, %d of them while entries moved; %d connections, %d requests, %d failed", kill, interrupted,
		w.connections(), w.requests.Load(), w.failures.Load())
	if interrupted == 0 {
		t.Errorf("none of %d kills came while entries moved", kill)
	}
}

// TestLimit fills a map that may not grow further: what is open goes on, new
// connections are dropped and counted, the status names the map, and an
// operator's order makes room.
func TestLimit(t *testing.T) {
	w := start(t, fmt.Sprintf("--limit-established=%d", 2*tiny))
	l := w.lanes[0] // cluster IP, TCP, IPv4
	stop := w.keepBusy()
	// Two entries a connection: first up to the limit, whose map is not full
	// before the entries have moved there.
	for range tiny * 85 / 100 / 2 {
		w.open(l)
	}
	if err := testbed.Eventually(harness.Limit(t, 30*time.Second), func() error {
		if n := w.settled()["established_v4"].GetMaxEntries(); n != 2*tiny {
			return fmt.Errorf("established_v4 has %d entries, want it to grow to %d", n, 2*tiny)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// Then filled; those that were let in before the first that found no room
	// wait among the embryonic ones.
	dial := l.dial
	dial.Timeout = 1500 * time.Millisecond
	dropped := 0
	for dropped < 3 {
		opened, err := l.prober.Open(dial)
		if err != nil {
			t.Fatal(err)
		}
		switch opened.Failure {
		case probe.None:
			l.mu.Lock()
			l.sessions = append(l.sessions, opened.Session)
			n := len(l.sessions)
			l.mu.Unlock()
			if n > 20*tiny {
				t.Fatalf("%d connections in a map of %d entries, and none is dropped", n, 2*tiny)
			}
		case probe.Timeout:
			dropped++
		default:
			t.Fatalf("connection %d: %s %s", w.connections(), opened.Failure, opened.Detail)
		}
	}
	w.problems(func(all string) error {
		for _, want := range []string{"established_v4 is full", "may not grow", "are dropped", "--limit-established"} {
			if !strings.Contains(all, want) {
				return fmt.Errorf("problems %q lack %q", all, want)
			}
		}
		if strings.Contains(all, "established_v6") {
			return fmt.Errorf("problems of a map that is not full: %s", all)
		}
		return nil
	})
	metrics := w.metrics()
	for _, want := range []string{
		`millrace_agent_drops_packets_total{device="`, `reason="ct-full"`,
		fmt.Sprintf(`millrace_agent_map_max_entries{map="established_v4"} %d`, 2*tiny), `millrace_agent_map_growths_total{map="established_v4"} 1`,
		`millrace_agent_map_moved_entries_total{map="established_v4"}`, `millrace_agent_map_insert_failures_total{map="established_v4"}`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	// Others are not affected: the other family, and what is not to a service.
	for _, other := range w.lanes {
		if strings.HasSuffix(other.name, "IPv6") {
			w.open(other)
		}
	}
	direct := probe.Dial{Network: probe.TCP, Target: netip.AddrPortFrom(w.Nodes[0].Pods[1].IPv4, 8030)}
	if answer, err := l.prober.Once(direct, probe.Exchange{}); err != nil || answer.Failure != probe.None {
		t.Errorf("pod to pod: %v, %v", answer, err)
	}
	output, err := exec.Command(w.Binaries.Ctl, "--agent", "unix://"+w.agent.Node.Socket, "maps", "grow", "established_v4", "1024").CombinedOutput()
	if err != nil || !strings.Contains(string(output), "1,024 entries") && !strings.Contains(string(output), "1024 entries") {
		t.Fatalf("maps grow: %s, %v", output, err)
	}
	for range 20 {
		w.open(l)
	}
	maps := w.settled()
	if n := maps["established_v4"].GetMaxEntries(); n != 1024 {
		t.Errorf("established_v4 has %d entries after the order", n)
	}
	w.noProblems()
	stop()
	w.all()
	t.Logf("figure: %d connections, %d requests, %d failed; %d dropped at the limit", w.connections(), w.requests.Load(), w.failures.Load(), dropped)
}
