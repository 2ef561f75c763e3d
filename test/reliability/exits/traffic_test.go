// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// patience is how long an exchange may take, far beyond what it takes on a busy
// machine.
const patience = 10 * time.Second

// flow is a socket that stays open.
type flow struct {
	name    string
	prober  *testbed.Prober
	session int
	server  string
}

// traffic goes on in the background from start to stop: exchanges on sockets
// that stay open, and new sockets to the same service. Nothing of it may fail.
type traffic struct {
	quit chan struct{}
	done sync.WaitGroup

	// flows that were opened; there are as many who open new sockets.
	flows int

	mu        sync.Mutex
	exchanges int
	failures  []error
}

func (t *traffic) fail(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failures) < 10 {
		t.failures = append(t.failures, fmt.Errorf(time.Now().Format("15:04:05.000 ")+format, args...))
	}
}

// err is what has failed so far.
func (t *traffic) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.failures...)
}

// startTraffic opens flows to a service that has one backend, of both families
// and protocols, translated at sockets and on packets, from a pod and from
// outside by the node port.
func (w *world) startTraffic(t *testing.T, s testbed.Service) *traffic {
	t.Helper()
	type origin struct {
		name   string
		prober *testbed.Prober
		target func(family int) netip.AddrPort
	}
	clusterIP := func(family int) netip.AddrPort { return netip.AddrPortFrom(s.ClusterIPs[family/6], s.Ports[0].Port) }
	// Not from one pod: a port that sent to the service by packets a moment ago is
	// not free for a socket that is connected to the backend itself.
	origins := []origin{
		{"sockets", w.probe(t, &w.node.Pods[0].Host, false), clusterIP},
		{"packets", w.probe(t, &w.node.Pods[1].Host, true), clusterIP},
		{"node port", w.probe(t, w.stack.Client, false), func(family int) netip.AddrPort {
			return netip.AddrPortFrom(w.node.IP(family), s.Ports[0].NodePort)
		}},
	}
	running := &traffic{quit: make(chan struct{})}
	for _, o := range origins {
		for _, network := range []string{probe.TCP, probe.UDP} {
			for _, family := range []int{4, 6} {
				dial := probe.Dial{Network: network, Target: o.target(family), Timeout: patience}
				opened, err := o.prober.Open(dial)
				if err != nil || opened.Failure != probe.None {
					t.Fatalf("open a flow by %s %s v%d: %+v, %v", o.name, network, family, opened, err)
				}
				f := flow{name: fmt.Sprintf("%s %s v%d", o.name, network, family), prober: o.prober, session: opened.Session}
				running.flows++
				running.exchange(&f)
				running.done.Go(func() { running.goOn(&f) })
				running.done.Go(func() { running.dialOn(f.name, o.prober, dial) })
			}
		}
	}
	t.Cleanup(func() {
		if err := running.stop(); err != nil {
			t.Errorf("traffic was interrupted: %v", err)
		}
	})
	w.traffic = running
	return running
}

// stop ends the traffic and tells what failed.
func (t *traffic) stop() error {
	t.mu.Lock()
	select {
	case <-t.quit:
	default:
		close(t.quit)
	}
	t.mu.Unlock()
	t.done.Wait()
	// The first exchange of each flow, and one more of everybody: tests take long
	// enough for that.
	if least := 3 * t.flows; t.exchanges < least {
		return errors.Join(t.err(), fmt.Errorf("%d exchanges were made in all, want %d at least", t.exchanges, least))
	}
	return t.err()
}

// pace is how often each flow and each dialler makes an exchange.
const pace = 250 * time.Millisecond

func (t *traffic) goOn(f *flow) {
	for {
		select {
		case <-t.quit:
			return
		case <-time.After(pace):
		}
		t.exchange(f)
	}
}

// exchange makes an exchange on the open socket: it must be answered, by who
// answered first.
func (t *traffic) exchange(f *flow) {
	a, err := f.prober.Exchange(probe.Exchange{Session: f.session})
	switch {
	case err != nil:
		t.fail("flow %s: %v", f.name, err)
	case a.Failure != probe.None:
		t.fail("flow %s: %s: %s", f.name, a.Failure, a.Detail)
	case f.server != "" && a.Server != f.server:
		t.fail("flow %s moved from %s to %s", f.name, f.server, a.Server)
	}
	f.server = a.Server
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exchanges++
}

// dialOn opens new sockets.
func (t *traffic) dialOn(name string, prober *testbed.Prober, dial probe.Dial) {
	dial.Abort = true // else thousands of closed sockets keep their ports
	for {
		select {
		case <-t.quit:
			return
		case <-time.After(pace):
		}
		a, err := prober.Once(dial, probe.Exchange{})
		switch {
		case err != nil:
			t.fail("new %s: %v", name, err)
		case a.Failure != probe.None:
			t.fail("new %s: %s: %s", name, a.Failure, a.Detail)
		}
		t.mu.Lock()
		t.exchanges++
		t.mu.Unlock()
	}
}
