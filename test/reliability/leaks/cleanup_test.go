// SPDX-License-Identifier: Apache-2.0

package leaks

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

const (
	// directPort is where pods answer those who dial them, not a service.
	directPort = 8090
	// tracking is the setting that the agent changes on a node.
	tracking = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"
)

// TestCleanup removes Millrace from a node under load, by the agent's command,
// and starts it again: nothing is left of it, the node's settings are as they
// were, and what does not go to services never notices.
func TestCleanup(t *testing.T) {
	rounds := 2
	if reliability.Soak() {
		rounds = 20
	}
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	cluster, err := testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: 3})
	if err != nil {
		t.Fatal(err)
	}
	stack := &testbed.Stack{Cluster: cluster, Binaries: binaries}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	node := stack.Nodes[0]
	before, err := node.Run("cat", tracking)
	if err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 5*time.Minute)
	if err := stack.Up(ctx); err != nil {
		t.Fatal(err)
	}
	service := traffic.NewService("served", 32, stack.Nodes[1].Pods[1].Endpoint(), node.Pods[1].Endpoint())
	if err := stack.ServeEcho(service.Ports[0].Target, &stack.Nodes[1].Pods[1].Host, &node.Pods[1].Host); err != nil {
		t.Fatal(err)
	}
	if err := stack.Serve(ctx, service); err != nil {
		t.Fatal(err)
	}
	// The service's clients are in another pod: their port numbers are theirs.
	direct, served := startDirect(t, stack), startServed(t, stack, service)
	taker := &taker{agent: stack.Agents[0], own: map[ebpf.MapID]bool{}}
	for range rounds {
		awaitRequests(t, direct, 500)
		awaitRequests(t, served, 100)
		there, err := taker.takeKernel()
		if err != nil {
			t.Fatal(err)
		}
		if there.programs < 10 || there.maps < 20 || there.links < 10 || there.pins < 30 {
			t.Fatalf("a node that is served has more than: %v", there)
		}
		if err := stack.Agents[0].Process.Stop(); err != nil {
			t.Fatal(err)
		}
		output, err := node.Run(binaries.Agent, "cleanup", "--bpf-dir", node.BPFDir, "--state-dir", node.StateDir)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", bytes.TrimSpace(output))
		// The kernel frees what nobody uses a moment later.
		err = testbed.Within(20*time.Second, func() error {
			left, err := taker.takeKernel()
			if err == nil && left != (inventory{}) {
				err = fmt.Errorf("left: %v", left)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if after, err := node.Run("cat", tracking); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s is %s (%v), was %s before Millrace came", tracking, after, err, before)
		}
		awaitRequests(t, direct, 500)
		if err := stack.Agents[0].Start(); err != nil {
			t.Fatal(err)
		}
		if err := stack.Agents[0].WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
		if err := stack.Agents[0].WaitServices(ctx, service); err != nil {
			t.Fatal(err)
		}
		// Requests of the time without services fail by and by: all is well
		// when each stream had a good while.
		good := map[string]uint64{}
		err = testbed.Within(30*time.Second, func() error {
			report, err := served.ReportLoad()
			if err != nil {
				return err
			}
			all := failures(report)
			for _, stream := range report.Streams {
				good[stream.Name] += stream.Requests
				if stream.Failed > 0 {
					good[stream.Name] = 0
				}
				if good[stream.Name] < 25 {
					all = errors.Join(all, fmt.Errorf("%s: %d good requests in a row", stream.Name, good[stream.Name]))
				}
			}
			return all
		})
		if err != nil {
			t.Errorf("services after the agent came back: %v", err)
		}
	}
	report, err := direct.StopLoad()
	if err != nil {
		t.Fatal(err)
	}
	if err := failures(report); err != nil {
		t.Errorf("what does not go to services: %v", err)
	}
}

// startDirect sends requests to pods of both nodes.
func startDirect(t *testing.T, stack *testbed.Stack) *testbed.Prober {
	t.Helper()
	var targets []netip.AddrPort
	for _, node := range stack.Nodes {
		host := &node.Pods[2].Host
		if err := stack.ServeEcho(directPort, host); err != nil {
			t.Fatal(err)
		}
		targets = append(targets, netip.AddrPortFrom(host.IPv4, directPort), netip.AddrPortFrom(host.IPv6, directPort))
	}
	return startLoad(t, stack, &stack.Nodes[0].Pods[0].Host, "direct", targets, targets)
}

// startServed sends requests to a service.
func startServed(t *testing.T, stack *testbed.Stack, service testbed.Service) *testbed.Prober {
	t.Helper()
	var targets, backends []netip.AddrPort
	for _, ip := range service.ClusterIPs {
		targets = append(targets, netip.AddrPortFrom(ip, service.Ports[0].Port))
	}
	for _, endpoint := range service.Endpoints {
		for _, ip := range []netip.Addr{endpoint.IPv4, endpoint.IPv6} {
			backends = append(backends, netip.AddrPortFrom(ip, service.Ports[0].Target))
		}
	}
	return startLoad(t, stack, &stack.Nodes[0].Pods[1].Host, service.Name, targets, backends)
}

func startLoad(t *testing.T, stack *testbed.Stack, host *testbed.Host, service string, targets, backends []netip.AddrPort) *testbed.Prober {
	t.Helper()
	prober, err := stack.Probe(host)
	if err != nil {
		t.Fatal(err)
	}
	load := probe.Load{Backends: map[string][]netip.AddrPort{service: backends}}
	for _, target := range targets {
		for _, network := range []string{probe.TCP, probe.UDP} {
			for _, fresh := range []bool{false, true} {
				load.Streams = append(load.Streams, probe.Stream{
					Name: fmt.Sprintf("%s %s, new sockets: %v", network, target, fresh), Service: service, Fresh: fresh, Stays: true,
					Dial: probe.Dial{Network: network, Target: target}, Sockets: 1, Interval: 40 * time.Millisecond,
				})
			}
		}
	}
	if err := prober.StartLoad(load); err != nil {
		t.Fatal(err)
	}
	return prober
}

// awaitRequests waits until so many requests have succeeded, and demands that
// none fails.
func awaitRequests(t *testing.T, prober *testbed.Prober, count uint64) {
	t.Helper()
	var succeeded uint64
	err := testbed.Within(30*time.Second, func() error {
		report, err := prober.ReportLoad()
		if err != nil {
			return err
		}
		if err := failures(report); err != nil {
			t.Error(err)
		}
		for _, stream := range report.Streams {
			succeeded += stream.Requests - stream.Failed
		}
		if succeeded < count {
			return fmt.Errorf("%d requests have succeeded", succeeded)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// failures lists those of a report.
func failures(report probe.Report) error {
	var all []error
	for _, stream := range report.Streams {
		for _, failure := range stream.Failures {
			all = append(all, fmt.Errorf("%s: %s at %s after %v: %s", stream.Name, failure.Failure,
				failure.Began.Format(time.TimeOnly), failure.Ended.Sub(failure.Began), failure.Detail))
		}
	}
	return errors.Join(all...)
}
