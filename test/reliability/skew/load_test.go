// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// load asks all the time, on sockets that stay open and on new ones, and notes
// every request that fails.
type load struct {
	requests, anew atomic.Int64
	stop           chan struct{}
	workers        sync.WaitGroup

	mu       sync.Mutex
	failures []string
}

// way is a client with what it dials.
type way struct {
	name   string
	prober *testbed.Prober
	target func(family int) netip.AddrPort
}

// ways are those by which the load goes: from pods by sockets and by packets,
// from a node and from outside, to backends here and elsewhere.
func ways(t *testing.T, stack *testbed.Stack, near, far testbed.Service) []way {
	t.Helper()
	get := func(prober *testbed.Prober, err error) *testbed.Prober {
		if err != nil {
			t.Fatal(err)
		}
		return prober
	}
	// Each way has a host of its own: a flow that a socket program translated is
	// unknown to the packet programs, so one of theirs from the same port of the
	// same pod to the same backend would be mistaken for it.
	node := stack.Nodes[0]
	sockets, packets := get(stack.Probe(&node.Pods[0].Host)), get(stack.ProbeBypass(&node.Pods[2].Host))
	host, external := get(stack.Probe(&node.Host)), get(stack.Probe(stack.Client))
	cluster := func(s testbed.Service) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort { return clusterIP(s, family) }
	}
	port := func(s testbed.Service) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort { return netip.AddrPortFrom(node.IP(family), s.Ports[0].NodePort) }
	}
	return []way{
		{"pod-sockets/near", sockets, cluster(near)},
		{"pod-sockets/far", sockets, cluster(far)},
		{"pod-packets/near", packets, cluster(near)},
		{"pod-packets/far", packets, cluster(far)},
		{"host-sockets/far", host, cluster(far)},
		{"external/near", external, port(near)},
		{"external/far", external, port(far)},
	}
}

// startLoad opens TCP and UDP sockets of both families on every way and begins.
func startLoad(t *testing.T, all []way) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	for _, way := range all {
		for _, family := range []int{4, 6} {
			for _, network := range []string{probe.TCP, probe.UDP} {
				name := fmt.Sprintf("%s/%s/v%d", way.name, network, family)
				dial := probe.Dial{Network: network, Target: way.target(family)}
				opened, err := way.prober.Open(dial)
				if err != nil {
					t.Fatal(err)
				}
				if opened.Failure != probe.None {
					t.Fatalf("%s: open before anything happens: %+v", name, opened)
				}
				l.workers.Go(func() { l.work(name, way.prober, dial, opened.Session) })
			}
		}
	}
	t.Cleanup(l.end)
	return l
}

// pace is how long a worker rests between two requests: what is of use is a
// request in every instant, not many.
const pace = 40 * time.Millisecond

func (l *load) work(name string, prober *testbed.Prober, dial probe.Dial, session int) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		var answer probe.Answer
		var err error
		what := "open socket"
		if i%2 == 0 {
			answer, err = prober.Exchange(probe.Exchange{Session: session, Size: 200})
		} else {
			what = "new socket"
			answer, err = prober.Once(dial, probe.Exchange{})
			l.anew.Add(1)
		}
		l.requests.Add(1)
		switch {
		case err != nil:
			l.fail("%s, %s: %v", name, what, err)
		case answer.Failure != probe.None || answer.From != dial.Target:
			l.fail("%s, %s: %+v", name, what, answer)
		}
	}
}

func (l *load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.workers.Wait()
}

// finish ends the load and reports every failure.
func (l *load) finish(t *testing.T) {
	t.Helper()
	l.end()
	t.Logf("figure: %d requests, %d of them on new sockets, %d failed", l.requests.Load(), l.anew.Load(), len(l.failures))
	if len(l.failures) > 0 {
		t.Errorf("%d of %d requests failed, the first:", len(l.failures), l.requests.Load())
		for _, failure := range l.failures[:min(len(l.failures), 10)] {
			t.Error(failure)
		}
	}
	if l.requests.Load() < 100 {
		t.Errorf("%d requests are no load", l.requests.Load())
	}
}
