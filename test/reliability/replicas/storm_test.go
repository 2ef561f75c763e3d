// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/digest"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

const (
	// stormNodes is how many agents come at once.
	stormNodes = 1000
	// joinLimit is the calculator's default of how many are brought up at a
	// time.
	joinLimit = 32
	// memoryPerStream bounds what a connected agent adds to the calculator's
	// memory, TLS and HTTP/2 included: three times what was measured.
	memoryPerStream = 270 << 10
	// memoryOfStorm bounds what the calculator's memory grows by at the most
	// while all come at once: three times what was measured.
	memoryOfStorm = 360 << 20
)

// testStorm lets a thousand agents come at once to one calculator: first such
// as have everything, then such as have nothing. Then the calculator stops and
// sends them away.
func testStorm(t *testing.T, f *fixture) {
	ctx := harness.Limit(t, 10*time.Minute)
	c := f.calculators[0]
	storm := f.newStorm(ctx, t, c)
	// Meanwhile, because it takes its time.
	finish := startHalfOpen(t, f)

	process := watchProcess(t, c.process)
	took := storm.connect(ctx, t, stormNodes, true)
	process.log(t, fmt.Sprintf("%d agents that have everything, in sync after %v", stormNodes, took.Round(time.Millisecond)), stormNodes)
	if grown := process.grown(t); grown > stormNodes*memoryPerStream {
		t.Errorf("%d streams cost %d KiB each, want at most %d", stormNodes, grown>>10/stormNodes, memoryPerStream>>10)
	}
	if n := storm.updates(); n != 0 {
		t.Errorf("they were sent %d updates", n)
	}
	storm.close()

	joiners := 200
	if reliability.Soak() {
		joiners = stormNodes
	}
	// Agents that the last round cut off are gone before the next one counts.
	if err := testbed.Eventually(ctx, func() error {
		if n := c.metric(ctx, t, "millrace_calculator_streams"); n > float64(len(f.agents)) {
			return fmt.Errorf("%v streams are left", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	process = watchProcess(t, c.process)
	most, stop := c.watchJoins(ctx, t)
	took = storm.connect(ctx, t, joiners, false)
	stop()
	refused := 0
	for _, a := range storm.agents {
		refused += a.refused
	}
	process.log(t, fmt.Sprintf("%d agents that have nothing, in sync after %v, %.1f MiB each, told to come again %d times", joiners,
		took.Round(time.Millisecond), float64(storm.agents[0].received)/(1<<20), refused), joiners)
	if *most > joinLimit || *most == 0 {
		t.Errorf("%v agents were brought up at a time, want 1 to %d", *most, joinLimit)
	}
	if peak := process.peak(t); peak > memoryOfStorm {
		t.Errorf("the calculator grew by %d MiB, want at most %d", peak>>20, memoryOfStorm>>20)
	}

	finish()
	storm.drain(ctx, t, c)
	storm.close()
	c.start(t)
	c.waitSynced(ctx, t)
	storm.removeNodes(ctx, t)
	f.waitInSync(ctx, t)
}

// storm is many agents of nodes that only the API server has.
type storm struct {
	f      *fixture
	c      *calculator
	names  []string
	common digest.Buckets // of what every node is given
	held   []digest.Buckets
	agents []*bareAgent
}

func (f *fixture) newStorm(ctx context.Context, t *testing.T, c *calculator) *storm {
	t.Helper()
	s := &storm{f: f, c: c}
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(16)
	for i := range stormNodes {
		name := fmt.Sprintf("storm-%04d", i)
		s.names = append(s.names, name)
		group.Go(func() error {
			_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metaName(name)}, metav1.CreateOptions{})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := testbed.Eventually(ctx, func() error {
		nodes, err := c.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
		if err == nil && len(nodes.GetNodes()) != stormNodes+len(f.Nodes) {
			err = fmt.Errorf("the calculator knows %d nodes", len(nodes.GetNodes()))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	own := []dataplanev1.ResourceType{dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG, dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT}
	s.common = s.dump(ctx, t, s.names[0], nil)
	first := s.dump(ctx, t, s.names[0], own)
	s.common.XOR(&first)
	for _, name := range s.names {
		held := s.dump(ctx, t, name, own)
		held.XOR(&s.common)
		s.held = append(s.held, held)
	}
	return s
}

func (s *storm) dump(ctx context.Context, t *testing.T, node string, types []dataplanev1.ResourceType) (buckets digest.Buckets) {
	t.Helper()
	stream, err := s.c.DumpNode(ctx, &calculatorv1.DumpNodeRequest{NodeName: node, Types: types})
	if err != nil {
		t.Fatal(err)
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return buckets
		}
		if err != nil {
			t.Fatal(err)
		}
		buckets.Add(answer.GetResource().GetName(), answer.GetResource().GetVersion())
	}
}

// connect opens streams for so many nodes at once and returns how long it took
// until the last one was in sync.
func (s *storm) connect(ctx context.Context, t *testing.T, count int, resume bool) time.Duration {
	t.Helper()
	s.agents = nil
	began := time.Now()
	var group errgroup.Group
	for i, name := range s.names[:count] {
		hello := &dataplanev1.Hello{NodeName: name, AgentVersion: "storm", InstanceId: fmt.Sprint(name, resume), Types: everything}
		if resume {
			hello.BucketDigests = s.held[i].Digests()
		}
		a := &bareAgent{}
		s.agents = append(s.agents, a)
		group.Go(func() error { return a.connect(ctx, s.f, s.c, hello) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func (s *storm) updates() (n int) {
	for _, a := range s.agents {
		n += a.updates
	}
	return n
}

func (s *storm) close() {
	for _, a := range s.agents {
		a.close()
	}
}

// drain stops the calculator. All but a few agents go when they are told; none
// of those that do not is left hanging.
func (s *storm) drain(ctx context.Context, t *testing.T, c *calculator) {
	t.Helper()
	const stubborn = 5
	began := time.Now()
	var mu sync.Mutex
	var told, last time.Duration
	var group errgroup.Group
	for i, a := range s.agents {
		group.Go(func() error {
			err := a.awaitDrain(i < stubborn)
			mu.Lock()
			defer mu.Unlock()
			last = max(last, time.Since(began))
			if i >= stubborn {
				told = max(told, time.Since(began))
			}
			return err
		})
	}
	if err := c.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	select {
	case <-c.process.Done():
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	if limit := drainTime + drainGrace + slack; time.Since(began) > limit {
		t.Errorf("it took %v, want %v", time.Since(began), limit)
	}
	if err := c.process.Err(); err != nil {
		t.Errorf("the calculator ended with %v", err)
	}
	t.Logf("figure: %d agents were sent away within %v, the stubborn ones cut off after %v, the process ended after %v", len(s.agents),
		told.Round(time.Millisecond), last.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

func (s *storm) removeNodes(ctx context.Context, t *testing.T) {
	t.Helper()
	client, err := s.f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.SetLimit(16)
	for _, name := range s.names {
		group.Go(func() error { return client.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// watchJoins looks at how many agents are being brought up until it is
// stopped.
func (c *calculator) watchJoins(ctx context.Context, t *testing.T) (most *float64, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	most = new(float64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			body, _, err := get(ctx, c.f.Control, fmt.Sprintf("http://127.0.0.1:%d/metrics", c.metricsPort()))
			if err != nil {
				continue
			}
			if _, rest, ok := strings.Cut(body, `millrace_calculator_joins{state="running"} `); ok {
				text, _, _ := strings.Cut(rest, "\n")
				if n, err := strconv.ParseFloat(text, 64); err == nil {
					*most = max(*most, n)
				}
			}
			pause(ctx, 20*time.Millisecond)
		}
	}()
	return most, func() { cancel(); <-done }
}

// watchedProcess measures a process from when it was made.
type watchedProcess struct {
	pid    int
	before int64 // bytes
	cpu    time.Duration
}

func watchProcess(t *testing.T, p *testbed.Process) *watchedProcess {
	t.Helper()
	w := &watchedProcess{pid: p.PID()}
	// The highest memory so far starts anew.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", w.pid), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	w.before, w.cpu = w.memory(t, "VmRSS:"), w.used(t)
	return w
}

func (w *watchedProcess) memory(t *testing.T, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), field)
	kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// used is the CPU time of the process.
func (w *watchedProcess) used(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+2:])
	var ticks int64
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

func (w *watchedProcess) grown(t *testing.T) int64 { return w.memory(t, "VmRSS:") - w.before }
func (w *watchedProcess) peak(t *testing.T) int64  { return w.memory(t, "VmHWM:") - w.before }

func (w *watchedProcess) log(t *testing.T, what string, streams int) {
	t.Helper()
	t.Logf("figure: %s; calculator: %v of CPU, %d MiB before, %d MiB at the most, %d MiB after (%d KiB a stream)", what,
		w.used(t)-w.cpu, w.before>>20, w.memory(t, "VmHWM:")>>20, w.memory(t, "VmRSS:")>>20, w.grown(t)>>10/int64(streams))
}
