// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// affinityClient is a client of a service, and the frontends that it calls.
type affinityClient struct {
	name    string
	prober  *testbed.Prober
	targets func(family int) []netip.AddrPort
}

// TestSessionAffinity calls a service with session affinity by all frontends,
// from pods, through sockets and on packets, from the node itself and from
// outside: each client keeps its backend until that is gone, or affinity is.
func TestSessionAffinity(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 3})
	node, pods := stack.Nodes[0], stack.Pods()
	service := newService("sticky", 1)
	for _, pod := range pods[1:] {
		service.Endpoints = append(service.Endpoints, pod.Endpoint())
	}
	service.Affinity = 600
	serve(t, stack, service)
	inside := func(family int) []netip.AddrPort {
		return []netip.AddrPort{
			clusterIP(service, family), nodePort(service, node, family),
			netip.AddrPortFrom(service.ExternalIPs[family/6], 80), netip.AddrPortFrom(service.LoadBalancerIPs[family/6], 80),
		}
	}
	clients := []affinityClient{
		{"pod-sockets", prober(t, stack, &pods[0].Host, false), inside},
		{"pod-packets", prober(t, stack, &pods[0].Host, true), inside},
		{"host-sockets", prober(t, stack, &node.Host, false), inside},
		{"host-packets", prober(t, stack, &node.Host, true), func(family int) []netip.AddrPort {
			targets := inside(family)
			return slices.Delete(targets, 1, 2) // node ports stay on loopback: for sockets alone
		}},
		// All by one node: each node remembers its own clients.
		{"external", prober(t, stack, stack.Client, false), func(family int) []netip.AddrPort { return inside(family)[1:] }},
	}
	type conversation struct {
		client  int
		network string
		family  int
	}
	call := func(when string, c conversation, times int) map[string]int {
		t.Helper()
		seen := map[string]int{}
		client := clients[c.client]
		for range times {
			for _, target := range client.targets(c.family) {
				answer := ask(t, client.prober, probe.Dial{Network: c.network, Target: target})
				if answer.Failure != probe.None || answer.From != target {
					t.Fatalf("%s: %s %s v%d to %s: %+v", when, client.name, c.network, c.family, target, answer)
				}
				seen[answer.Server]++
			}
		}
		return seen
	}
	// keep checks that each client keeps one backend, and returns which.
	keep := func(when string) map[conversation]string {
		t.Helper()
		kept := map[conversation]string{}
		for i, client := range clients {
			for _, network := range networks {
				for _, family := range families {
					c := conversation{i, network, family}
					seen := call(when, c, 4)
					if len(seen) != 1 {
						t.Errorf("%s: %s %s v%d went to %v", when, client.name, network, family, seen)
					}
					for server := range seen {
						kept[c] = server
					}
				}
			}
		}
		return kept
	}
	first := keep("at first")
	for _, network := range networks {
		for _, family := range families {
			if a, b := first[conversation{2, network, family}], first[conversation{3, network, family}]; a != b {
				t.Errorf("%s v%d: the host is one client, and has %s by its sockets and %s by its packets", network, family, a, b)
			}
		}
	}
	same := func(when string, before, after map[conversation]string, but string) {
		t.Helper()
		for c, had := range before {
			if got := after[c]; (had == but) == (got == had) {
				t.Errorf("%s: %s %s v%d had %s and has %s", when, clients[c.client].name, c.network, c.family, had, got)
			}
		}
	}
	agent := stack.Agents[0]
	for _, step := range []func() error{agent.Process.Kill, agent.Start,
		func() error { return agent.WaitServices(harness.Limit(t, 20*time.Second), service) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	same("after a restart of the agent", first, keep("after a restart of the agent"), "")

	// A backend goes, and comes back: who had it gets another and stays there.
	gone := first[conversation{0, probe.TCP, 4}]
	all := service.Endpoints
	service.Endpoints = slices.DeleteFunc(slices.Clone(all), func(e testbed.Endpoint) bool { return e.PodName == gone })
	serve(t, stack, service)
	second := keep("without " + gone)
	same("without "+gone, first, second, gone)
	service.Endpoints = all
	serve(t, stack, service)
	same("with "+gone+" again", second, keep("with "+gone+" again"), "")

	service.Affinity = 0
	serve(t, stack, service)
	for i, client := range clients {
		if seen := call("without affinity", conversation{i, probe.TCP, 4}, 20); len(seen) < 3 {
			t.Errorf("without affinity: %s went to %v", client.name, seen)
		}
	}
	service.Affinity = 600
	serve(t, stack, service)
	keep("with affinity again")
}

// TestSessionAffinityEnds lets clients come again when their time is over: then
// they get any backend.
func TestSessionAffinityEnds(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 1, PodsPerNode: 4})
	pods, agent := stack.Pods(), stack.Agents[0]
	service := newService("sticky", 1)
	for _, pod := range pods[1:] {
		service.Endpoints = append(service.Endpoints, pod.Endpoint())
	}
	service.Affinity = 1
	serve(t, stack, service)
	// over tells whether nobody keeps a backend, as far as the agent says.
	over := func() error {
		stream, err := agent.ListAffinities(harness.Limit(t, 20*time.Second), &agentv1.ListAffinitiesRequest{Service: testbed.Namespace + "/sticky"})
		if err != nil {
			return err
		}
		for {
			c, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if c.GetExpires().AsDuration() > 0 {
				return fmt.Errorf("%v keeps its backend", c)
			}
		}
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			p := prober(t, stack, &pods[0].Host, way.bypass)
			seen := map[string]bool{}
			for range 30 {
				answer := ask(t, p, probe.Dial{Network: probe.TCP, Target: clusterIP(service, 4)})
				if answer.Failure != probe.None {
					t.Fatalf("%+v", answer)
				}
				if seen[answer.Server] = true; len(seen) > 1 {
					return
				}
				if err := testbed.Within(20*time.Second, over); err != nil {
					t.Fatal(err)
				}
			}
			t.Errorf("30 times after the end of its time the client went to %v", seen)
		})
	}
}
