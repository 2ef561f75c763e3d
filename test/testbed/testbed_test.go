// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/probe"
)

func startCluster(t *testing.T, options Options) *Cluster {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skip(err)
	}
	cluster, err := Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

func probeBinary(t *testing.T) Binaries {
	t.Helper()
	dir := t.TempDir()
	binaries := binariesIn(dir)
	if err := buildProgram("millrace-probe", binaries.Probe); err != nil {
		t.Fatal(err)
	}
	return binaries
}

// TestTraffic proves that the bare cluster forwards what a Kubernetes network
// without services forwards, and nothing else.
func TestTraffic(t *testing.T) {
	began := time.Now()
	cluster := startCluster(t, Options{Masquerade: true})
	t.Logf("built in %v", time.Since(began))
	binaries := probeBinary(t)

	probers := map[*Host]*Prober{}
	for _, host := range cluster.Hosts() {
		prober, err := cluster.Probe(host, binaries)
		if err != nil {
			t.Fatal(err)
		}
		if err := prober.Serve(8080); err != nil {
			t.Fatal(err)
		}
		probers[host] = prober
	}
	pods := cluster.Pods()
	node := &cluster.Nodes[0].Host
	cases := []struct {
		name           string
		client, server *Host
		source         *Host // whose address the server sees; nil: does not get there
	}{
		{"pod to pod on the node", &pods[0].Host, &pods[1].Host, &pods[0].Host},
		{"pod to itself", &pods[0].Host, &pods[0].Host, &pods[0].Host},
		{"pod to pod on another node", &pods[0].Host, &pods[2].Host, &pods[0].Host},
		{"pod to its node", &pods[0].Host, node, &pods[0].Host},
		{"pod to another node", &pods[0].Host, &cluster.Nodes[1].Host, node},
		{"node to its pod", node, &pods[0].Host, node},
		{"node to another node's pod", node, &pods[2].Host, node},
		{"pod to client, masqueraded", &pods[0].Host, cluster.Client, node},
		{"client to node", cluster.Client, node, cluster.Client},
		{"control to node", cluster.Control, node, cluster.Control},
		{"client to pod", cluster.Client, &pods[0].Host, nil},
	}
	for _, test := range cases {
		for _, network := range []string{probe.TCP, probe.UDP} {
			for _, family := range []int{4, 6} {
				t.Run(fmt.Sprintf("%s/%s/v%d", test.name, network, family), func(t *testing.T) {
					dial := probe.Dial{Network: network, Target: netip.AddrPortFrom(test.server.IP(family), 8080), Timeout: 2 * time.Second}
					if test.source == nil {
						dial.Timeout = 200 * time.Millisecond
					}
					answer, err := probers[test.client].Once(dial, probe.Exchange{})
					if err != nil {
						t.Fatal(err)
					}
					if test.source == nil {
						if answer.Failure == probe.None {
							t.Fatalf("got there: %+v", answer)
						}
						return
					}
					if answer.Failure != probe.None || answer.Server != test.server.Name ||
						answer.Client.Addr() != test.source.IP(family) || answer.From != dial.Target {
						t.Fatalf("got %+v, want %s to see %s", answer, test.server.Name, test.source.IP(family))
					}
				})
			}
		}
	}
}

// TestTeardown proves that nothing is left, whatever ran.
func TestTeardown(t *testing.T) {
	cluster := startCluster(t, Options{Nodes: 2})
	for _, host := range cluster.Hosts() {
		if _, err := host.Start("sleep-"+host.Name, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
		if _, err := host.StartBypass("sleep-bypass-"+host.Name, "sleep", "1000"); err != nil {
			t.Fatal(err)
		}
	}
	traces, err := cluster.Traces()
	if err != nil {
		t.Fatal(err)
	}
	if found := traces.Present(); len(found) < len(cluster.Hosts())*3 {
		t.Fatalf("traces of a running cluster: %v", found)
	}
	if err := cluster.Close(); err != nil {
		t.Fatal(err)
	}
	err = Within(10*time.Second, func() error {
		if found := traces.Present(); len(found) > 0 {
			return fmt.Errorf("left: %s", strings.Join(found, ", "))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSweep proves that a cluster whose builder was killed goes when the next
// one is built, and that a kept one stays.
func TestSweep(t *testing.T) {
	abandoned := startCluster(t, Options{Name: "t-sweep-abandoned", Nodes: 1})
	if _, err := abandoned.Client.Start("sleep", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(Options{Name: "t-sweep-abandoned", Nodes: 1}); !errors.Is(err, ErrInUse) {
		t.Fatalf("building it twice: %v", err)
	}
	kept := startCluster(t, Options{Name: "t-sweep-kept", Nodes: 1})
	// The lock of a killed process is released by the kernel.
	abandoned.lock.Close()
	if err := kept.Keep(); err != nil {
		t.Fatal(err)
	}
	startCluster(t, Options{Name: "t-sweep-next", Nodes: 1})
	if _, err := os.Stat(abandoned.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("abandoned cluster is still there: %v", err)
	}
	if _, err := os.Stat(abandoned.Cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cgroup of the abandoned cluster is still there: %v", err)
	}
	if _, err := Start(Options{Name: "t-sweep-kept", Nodes: 1}); !errors.Is(err, ErrKept) {
		t.Errorf("building a kept one again: %v", err)
	}
	loaded, err := Load("t-sweep-kept")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := loaded.Nodes[0].Pods[0].Run("cat", "/proc/self/cgroup"); err != nil ||
		!strings.Contains(string(out), filepath.Base(loaded.Cgroup)+"/node-1/pods/pod-1-1") {
		t.Errorf("running in a loaded cluster: %s %v", out, err)
	}
	if was, err := Remove("t-sweep-kept"); err != nil || !was {
		t.Errorf("remove: %t %v", was, err)
	}
	if was, err := Remove("t-sweep-kept"); err != nil || was {
		t.Errorf("remove what is gone: %t %v", was, err)
	}
}

// TestNarrowRoute proves that a narrow link in the middle is one: large
// datagrams get through only once the sender has learnt of it.
func TestNarrowRoute(t *testing.T) {
	cluster := startCluster(t, Options{Nodes: 2, PodsPerNode: 1})
	binaries := probeBinary(t)
	client, server := cluster.Pods()[0], cluster.Pods()[1]
	prober, err := cluster.Probe(&client.Host, binaries)
	if err != nil {
		t.Fatal(err)
	}
	other, err := cluster.Probe(&server.Host, binaries)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Serve(8080); err != nil {
		t.Fatal(err)
	}
	for _, family := range []int{4, 6} {
		if err := cluster.Nodes[1].SetRouteMTU(hostPrefix(server.IP(family)), 1300); err != nil {
			t.Fatal(err)
		}
		dial := probe.Dial{Network: probe.UDP, Target: netip.AddrPortFrom(server.IP(family), 8080), Timeout: 300 * time.Millisecond}
		opened, err := prober.Open(dial)
		if err != nil || opened.Failure != probe.None {
			t.Fatal(err, opened)
		}
		var outcomes []probe.Failure
		for range 3 {
			answer, err := prober.Exchange(probe.Exchange{Session: opened.Session, Size: 1400})
			if err != nil {
				t.Fatal(err)
			}
			outcomes = append(outcomes, answer.Failure)
		}
		if outcomes[0] == probe.None || outcomes[2] != probe.None {
			t.Errorf("v%d: datagrams of 1400 bytes over a link of 1300: %q, want a failure, then answers", family, outcomes)
		}
		dial.Network, dial.Timeout = probe.TCP, 5*time.Second
		answer, err := prober.Once(dial, probe.Exchange{Size: 1 << 20, ReplySize: 1 << 20})
		if err != nil || answer.Failure != probe.None {
			t.Errorf("v%d: transfer over a narrow link: %v %+v", family, err, answer)
		}
	}
}
