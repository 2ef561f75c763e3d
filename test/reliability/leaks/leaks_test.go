// SPDX-License-Identifier: Apache-2.0

package leaks

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// binaries are built once for all tests.
var binaries testbed.Binaries

func TestMain(m *testing.M) { os.Exit(harness.Main(m, &binaries)) }

// podsAtATime come and go together.
const podsAtATime = 20

// world is a cluster of one node whose agent is watched.
type world struct {
	*testbed.Stack
	taker *taker
	// rounds counts what roundOfPods has made, so that services have names of
	// their own.
	rounds int
}

func start(t *testing.T) *world {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	stack, err := testbed.StartStack(harness.Limit(t, time.Minute), testbed.Options{Nodes: 1, PodsPerNode: 1}, binaries)
	if stack != nil {
		t.Cleanup(func() {
			if t.Failed() && len(stack.Agents) > 0 {
				t.Logf("agent:\n%s", stack.Agents[0].Process.LogTail(30))
			}
			if err := stack.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return &world{Stack: stack, taker: &taker{agent: stack.Agents[0], own: map[ebpf.MapID]bool{}}}
}

// roundOfPods makes pods that serve and a service of them, calls it by every
// program, and removes everything.
func (w *world) roundOfPods(ctx context.Context, t *testing.T) {
	t.Helper()
	w.rounds++
	const number = 30
	service := traffic.NewService(fmt.Sprintf("round-%d", w.rounds), number)
	var pods []*testbed.Pod
	for range podsAtATime {
		pod, err := w.AddPod(w.Nodes[0])
		if err != nil {
			t.Fatal(err)
		}
		pods = append(pods, pod)
		service.Endpoints = append(service.Endpoints, pod.Endpoint())
	}
	if err := w.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
	// Two that answer are enough; every pod more is a process more.
	for _, pod := range pods[:2] {
		if err := w.ServeEcho(service.Ports[0].Target, &pod.Host); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Serve(ctx, service); err != nil {
		t.Fatal(err)
	}
	service.Endpoints = service.Endpoints[:2]
	if err := w.Serve(ctx, service); err != nil {
		t.Fatal(err)
	}
	w.call(t, service)
	if err := w.Unserve(ctx, service); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods {
		if err := w.RemovePod(pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
	if err := w.Agents[0].WaitInSync(ctx); err != nil {
		t.Fatal(err)
	}
}

// call makes requests by sockets and by packets, from a pod and from outside.
func (w *world) call(t *testing.T, service testbed.Service) {
	t.Helper()
	pod := &w.Nodes[0].Pods[0].Host
	for _, client := range []struct {
		get  func(*testbed.Host) (*testbed.Prober, error)
		host *testbed.Host
	}{{w.Probe, pod}, {w.ProbeBypass, pod}, {w.Probe, w.Client}} {
		prober, err := client.get(client.host)
		if err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{probe.TCP, probe.UDP} {
			for _, family := range []int{4, 6} {
				answer, err := prober.Once(probe.Dial{Network: network, Target: traffic.NodePort(service, w.Nodes[0], family)}, probe.Exchange{})
				if err != nil {
					t.Fatal(err)
				}
				if answer.Failure != probe.None {
					t.Fatalf("%s by %s, IPv%d: %+v", client.host.Name, network, family, answer)
				}
			}
		}
	}
}

// expectNoMore waits until there is no more of anything than before. Flows end
// and the kernel frees by and by.
func (w *world) expectNoMore(t *testing.T, before inventory) {
	t.Helper()
	ctx := harness.Limit(t, 90*time.Second)
	var now inventory
	err := testbed.Eventually(ctx, func() (err error) {
		if now, err = w.taker.take(context.Background()); err != nil {
			return err
		}
		return now.exceeds(before)
	})
	t.Logf("figure: after: %v", now)
	if err != nil {
		t.Error(err)
	}
}

// maxGrown is how many KiB an agent may have grown by, whatever their number: a
// thousand pods made 0.7 MiB of difference, and the collector's rhythm 3.
const maxGrown = 5 << 10

// TestPods makes and removes pods: nothing of them is left, and the agent does
// not grow.
func TestPods(t *testing.T) {
	count := 100
	if reliability.Soak() {
		count = 1000
	}
	w := start(t)
	ctx := harness.Limit(t, 10*time.Minute)
	// The first ones fill caches and pools.
	w.roundOfPods(ctx, t)
	before, err := w.settled(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("before: %v", before)
	var sizes []int64
	for range count / podsAtATime {
		w.roundOfPods(ctx, t)
		size, err := memory(w.Agents[0])
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size)
	}
	w.expectNoMore(t, before)
	growth := slope(sizes) / podsAtATime
	t.Logf("figure: memory: %d KiB after the first %d pods, %d KiB after %d, %.2f KiB a pod in the later half", sizes[0], podsAtATime, sizes[len(sizes)-1], count, growth)
	// At CI's size the collector's rhythm is all that is seen.
	if reliability.Soak() && growth > 4 {
		t.Errorf("the agent grows by %.2f KiB a pod", growth)
	}
	if grown := sizes[len(sizes)-1] - sizes[0]; grown > maxGrown {
		t.Errorf("the agent grew by %d KiB with %d pods, want at most %d", grown, count, maxGrown)
	}
}

// settled takes an inventory when what flows left has gone.
func (w *world) settled(ctx context.Context) (inventory, error) {
	var now inventory
	err := testbed.Eventually(ctx, func() (err error) {
		if now, err = w.taker.take(ctx); err == nil && now.flows > 0 {
			err = fmt.Errorf("%d flows have not ended", now.flows)
		}
		return err
	})
	return now, err
}

// slope is how much numbers grow from one to the next, in the later half of
// them, by least squares.
func slope(numbers []int64) float64 {
	half := numbers[len(numbers)/2:]
	n := float64(len(half))
	var x, y, xx, xy float64
	for i, number := range half {
		a, b := float64(i), float64(number)
		x, y, xx, xy = x+a, y+b, xx+a*a, xy+a*b
	}
	if n*xx == x*x {
		return 0
	}
	return (n*xy - x*y) / (n*xx - x*x)
}

// TestRestarts starts the agent again and again, after it was killed and after
// it was stopped: each finds the other's things and adds none.
func TestRestarts(t *testing.T) {
	count := 8
	if reliability.Soak() {
		count = 50
	}
	w := start(t)
	ctx := harness.Limit(t, 10*time.Minute)
	kept := traffic.NewService("kept", 31, w.Nodes[0].Pods[0].Endpoint())
	if err := w.Serve(ctx, kept); err != nil {
		t.Fatal(err)
	}
	agent := w.Agents[0]
	var before inventory
	var sizes []int64
	for i := range count + 1 {
		end := agent.Process.Kill
		if i%2 == 1 {
			end = agent.Process.Stop
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
		var err error
		if i == 0 { // one that was restarted, like all that follow
			if before, err = w.settled(ctx); err != nil {
				t.Fatal(err)
			}
			t.Logf("before: %v", before)
		}
		size, err := memory(agent)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, size)
	}
	w.expectNoMore(t, before)
	t.Logf("figure: memory of each agent in sync, KiB: %v", sizes)
	// Each agent finds the same, so it needs as much as the first one, but for the
	// collector's rhythm.
	const rhythm = 3 << 10
	if least, most := slices.Min(sizes), slices.Max(sizes); most-least > rhythm {
		t.Errorf("agents that find the same need from %d to %d KiB", least, most)
	}
}
