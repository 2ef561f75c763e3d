// SPDX-License-Identifier: Apache-2.0

package ctgrowth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &binaries)) }

// tiny are the maps that the tests fill: not so small that connections that wait
// for room fill the larger map as well before the entries of this one have
// moved, which ends only with connections (docs/reliability.md).
const tiny = 256

// world is a cluster whose agents have tiny conntrack maps, and ways to
// services that need records.
type world struct {
	*testing.T
	*testbed.Stack
	agent *testbed.Agent // of the node whose maps are looked at
	lanes []*lane

	requests, failures atomic.Int64
}

// lane is one way to a service: all its connections are between the same ends.
type lane struct {
	name   string
	prober *testbed.Prober
	dial   probe.Dial

	mu       sync.Mutex
	sessions []int
}

func start(t *testing.T, agentArgs ...string) *world {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	args := append([]string{fmt.Sprintf("--max-established=%d", tiny), "--max-embryonic=512"}, agentArgs...)
	stack, err := testbed.StartStack(harness.Limit(t, time.Minute), testbed.Options{Nodes: 2, PodsPerNode: 2, AgentArgs: args}, binaries)
	if stack != nil {
		t.Cleanup(func() {
			for _, agent := range stack.Agents {
				if t.Failed() {
					t.Logf("agent of %s:\n%s", agent.Node.Name, agent.Process.LogTail(30))
				}
			}
			if err := stack.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Stack: stack, agent: stack.Agents[0]}
	near, far := stack.Nodes[0].Pods[1], stack.Nodes[1].Pods[1]
	nearby := traffic.NewService("near", 30, near.Endpoint())
	remote := traffic.NewService("far", 31, far.Endpoint())
	for service, pod := range map[*testbed.Service]*testbed.Pod{&nearby: near, &remote: far} {
		if err := stack.ServeEcho(service.Ports[0].Target, &pod.Host); err != nil {
			t.Fatal(err)
		}
	}
	if err := stack.Serve(harness.Limit(t, 30*time.Second), nearby, remote); err != nil {
		t.Fatal(err)
	}
	pod, err := stack.ProbeBypass(&stack.Nodes[0].Pods[0].Host)
	if err != nil {
		t.Fatal(err)
	}
	outside, err := stack.Probe(stack.Client)
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		for _, network := range []string{probe.TCP, probe.UDP} {
			add := func(name string, prober *testbed.Prober, target netip.AddrPort) {
				w.lanes = append(w.lanes, &lane{name: fmt.Sprintf("%s, %s, IPv%d", name, network, family), prober: prober,
					dial: probe.Dial{Network: network, Target: target, Timeout: 5 * time.Second}})
			}
			add("pod to cluster IP", pod, netip.AddrPortFrom(testbed.ServiceIP(family, 30), 80))
			add("outside to node port", outside, traffic.NodePort(nearby, stack.Nodes[0], family))
			add("outside to node port, other node", outside, traffic.NodePort(remote, stack.Nodes[0], family))
		}
	}
	return w
}

// open opens a connection of a lane and makes the requests that establish it.
func (w *world) open(l *lane) {
	opened, err := l.prober.Open(l.dial)
	if err == nil && opened.Failure != probe.None {
		err = fmt.Errorf("%s %s", opened.Failure, opened.Detail)
	}
	w.requests.Add(1)
	if err != nil {
		w.failures.Add(1)
		w.Errorf("%s: open connection: %v", l.name, err)
		return
	}
	for range 2 {
		w.exchange(l, opened.Session)
	}
	l.mu.Lock()
	l.sessions = append(l.sessions, opened.Session)
	l.mu.Unlock()
}

// exchange makes a request on an open connection.
func (w *world) exchange(l *lane, session int) {
	answer, err := l.prober.Exchange(probe.Exchange{Session: session})
	if err == nil && answer.Failure != probe.None {
		err = fmt.Errorf("%s %s", answer.Failure, answer.Detail)
	}
	w.requests.Add(1)
	if err != nil {
		w.failures.Add(1)
		w.Errorf("%s: connection %d: %v", l.name, session, err)
	}
}

// all makes a request on each open connection.
func (w *world) all() {
	var wait sync.WaitGroup
	for _, l := range w.lanes {
		wait.Go(func() {
			l.mu.Lock()
			sessions := append([]int(nil), l.sessions...)
			l.mu.Unlock()
			for _, session := range sessions {
				w.exchange(l, session)
			}
		})
	}
	wait.Wait()
}

// keepBusy makes requests on all open connections until stop is called.
func (w *world) keepBusy() (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		// Not without a pause: the agents are to have a part of the machine.
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				w.all()
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); wait.Wait() })
	w.Cleanup(stop)
	return stop
}

// connections counts the open ones.
func (w *world) connections() int {
	n := 0
	for _, l := range w.lanes {
		n += len(l.sessions)
	}
	return n
}

// maps returns the agent's maps of flows by name.
func (w *world) maps() (map[string]*agentv1.MapState, error) {
	list, err := w.agent.ListMaps(context.Background(), &agentv1.ListMapsRequest{})
	if err != nil {
		return nil, err
	}
	maps := map[string]*agentv1.MapState{}
	for _, m := range list.GetMaps() {
		if strings.HasPrefix(m.GetName(), "established_") || strings.HasPrefix(m.GetName(), "embryonic_") {
			maps[m.GetName()] = m
		}
	}
	return maps, nil
}

// settled waits until no entries move, and returns the maps.
func (w *world) settled() map[string]*agentv1.MapState {
	w.Helper()
	var maps map[string]*agentv1.MapState
	if err := testbed.Eventually(harness.Limit(w.T, 30*time.Second), func() (err error) {
		if maps, err = w.maps(); err != nil {
			return err
		}
		for name := range maps {
			if strings.HasSuffix(name, "-draining") {
				return fmt.Errorf("%s is still there", name)
			}
		}
		return nil
	}); err != nil {
		w.Fatal(err)
	}
	return maps
}

// problems waits until the agent's problems satisfy a condition.
func (w *world) problems(condition func(all string) error) {
	w.Helper()
	if err := testbed.Eventually(harness.Limit(w.T, 30*time.Second), func() error {
		status, err := w.agent.GetStatus(context.Background(), &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		return condition(strings.Join(status.GetProblems(), "\n"))
	}); err != nil {
		w.Error(err)
	}
}

func (w *world) noProblems() {
	w.Helper()
	w.problems(func(all string) error {
		if all != "" {
			return errors.New(all)
		}
		return nil
	})
}

// metrics reads the agent's.
func (w *world) metrics() string {
	w.Helper()
	var text []byte
	err := w.agent.Node.Do(func() error {
		// A connection of its own: it is made in the node's namespace, on this thread.
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", testbed.MetricsPort), 5*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := fmt.Fprint(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		text, err = io.ReadAll(conn)
		return err
	})
	if err != nil {
		w.Fatalf("read metrics: %v", err)
	}
	return string(text)
}
