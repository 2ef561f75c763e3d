// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// world is a cluster of which one node's agent runs under a supervisor; the
// other node has none and serves as the place of remote backends.
type world struct {
	stack      *testbed.Stack
	node       *testbed.Node
	agent      *testbed.Agent
	supervisor *syscalls.Supervisor
	// backends are the pods that services may use.
	backends []testbed.Endpoint
	now      model
	// extraNode tells that there is a node more than the cluster has.
	extraNode bool
	traffic   *traffic
}

// settings of a world that tests change.
type settings struct {
	// args are added to the agent's command line.
	args []string
	// under is put before the supervisor's command line.
	under []string
	// prepare runs before the agent is started first.
	prepare func(*world)
}

// start builds the world with a stable service and some others.
func start(t *testing.T, s settings) *world {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	supervisor, err := syscalls.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(supervisor.Err(), supervisor.Close()); err != nil {
			t.Errorf("supervisor: %v", err)
		}
	})
	cluster, err := testbed.Start(testbed.Options{Nodes: 2, PodsPerNode: 4})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{stack: &testbed.Stack{Cluster: cluster, Binaries: binaries}, node: cluster.Nodes[0], supervisor: supervisor, now: model{}}
	supervisor.Ignore(ofPass)
	t.Cleanup(func() {
		if t.Failed() && w.agent != nil && w.agent.Process != nil {
			t.Logf("agent:\n%s", w.agent.Process.LogTail(30))
		}
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	w.up(t, s)
	return w
}

// up starts the programs and the echo servers.
func (w *world) up(t *testing.T, set settings) {
	t.Helper()
	if err := w.stack.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
	calculator, err := w.stack.StartCalculator(testbed.CalculatorOptions{Binaries: binaries})
	if err != nil {
		t.Fatal(err)
	}
	w.stack.Calculator = calculator
	for _, node := range w.stack.Nodes {
		for _, pod := range node.Pods[2:] { // the first ones are clients
			w.serve(t, &pod.Host)
			w.backends = append(w.backends, pod.Endpoint())
		}
	}
	under, err := w.supervisor.Command()
	if err != nil {
		t.Fatal(err)
	}
	if set.prepare != nil {
		set.prepare(w)
	}
	w.agent, err = w.stack.StartAgent(w.node, testbed.AgentOptions{Binaries: binaries, Args: set.args, Under: append(set.under, under...)})
	if err != nil {
		t.Fatal(err)
	}
	base := model{}
	s := service(stableNumber, w.backends[0])
	base[s.Name] = s
	for i, count := range []int{2, 3, 1} {
		s := service(firstNumber+i, slices.Clone(w.backends[:count])...)
		base[s.Name] = s
	}
	w.apply(t, base)
	w.mustConverge(t, "at the start")
}

// serve starts the echo servers of all services on a host.
func (w *world) serve(t *testing.T, host *testbed.Host) {
	t.Helper()
	for n := stableNumber; n <= lastNumber; n++ {
		if err := w.stack.ServeEcho(target(n), host); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) probe(t *testing.T, host *testbed.Host, bypass bool) *testbed.Prober {
	t.Helper()
	get := w.stack.Probe
	if bypass {
		get = w.stack.ProbeBypass
	}
	p, err := get(host)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// apply writes the manifests that make the services look like next.
func (w *world) apply(t *testing.T, next model) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(w.now)) {
		if _, ok := next[name]; !ok {
			if err := w.stack.DeleteService(w.now[name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(next)) {
		if fmt.Sprint(next[name]) == fmt.Sprint(w.now[name]) {
			continue
		}
		if err := w.stack.ApplyService(next[name]); err != nil {
			t.Fatal(err)
		}
	}
	w.now = next
}

// errDied says that the agent was killed by the supervisor.
var errDied = errors.New("killed by the supervisor")

// converge waits until the agent says that it is in sync, the kernel holds what
// the model says, and nothing differs from what the agent desires; or until the
// agent was killed as planned.
func (w *world) converge(limit time.Duration) error {
	return w.wait(limit, w.inSync)
}

// wait waits until the kernel holds what the model says and more.
func (w *world) wait(limit time.Duration, more func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var died, last error
	err := testbed.Eventually(ctx, func() error {
		if err := w.agent.Process.Running(); err != nil {
			if died = err; w.supervisor.Killed() != nil {
				died = errDied
			}
			return nil
		}
		k, err := readKernel(w.node)
		if err != nil {
			return err
		}
		if err := k.is(w.now.frontends(w.node)); err != nil {
			return err
		}
		if err := more(ctx); err == nil || ctx.Err() == nil {
			last = err
		} // else the question was broken off, the answer before tells more
		return last
	})
	if died != nil {
		return died
	}
	return err
}

// inSync asks the agent whether it is in sync and desires nothing else.
func (w *world) inSync(ctx context.Context) error {
	status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	if len(status.GetErrors()) > 0 || len(status.GetProblems()) > 0 {
		return fmt.Errorf("errors %v, problems %q", status.GetErrors(), status.GetProblems())
	}
	return w.same(ctx, status)
}

// same tells whether the agent is in sync and desires what the kernel has.
func (w *world) same(ctx context.Context, status *agentv1.GetStatusResponse) error {
	stream := status.GetCalculator()
	if !stream.GetConnected() || !stream.GetInSync() || stream.GetProgrammedRevision() < stream.GetReceivedRevision() {
		return fmt.Errorf("not in sync: %v", stream)
	}
	if err := w.checkTopology(status); err != nil {
		return err
	}
	return w.noDiff(ctx)
}

// noDiff asks the agent whether it desires what the kernel has.
func (w *world) noDiff(ctx context.Context) error {
	diff, err := w.agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		return err
	}
	d, err := diff.Recv()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("the agent desires something else than what is: %v", d)
}

func (w *world) mustConverge(t *testing.T, when string) {
	t.Helper()
	if err := w.converge(time.Minute); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
}

// kill ends the agent at once.
func (w *world) kill(t *testing.T) {
	t.Helper()
	if err := w.agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
}

// launch starts the agent and does not wait.
func (w *world) launch(t *testing.T) {
	t.Helper()
	if err := w.agent.Launch(); err != nil {
		t.Fatal(err)
	}
}

// away checks the kernel while no agent runs: the state before a change, or the
// one after, for every frontend, and right answers.
func (w *world) away(t *testing.T, when string, before, after model) {
	t.Helper()
	k, err := readKernel(w.node)
	if err == nil {
		err = k.is(before.frontends(w.node), after.frontends(w.node))
	}
	if err == nil {
		err = w.ask(k, before, after)
	}
	if err != nil {
		t.Fatalf("%s, no agent runs: %v", when, err)
	}
}

// ask dials the frontends that the kernel has and that differ between the
// states; if none does, those of the first service.
func (w *world) ask(k *kernel, before, after model) error {
	was, will := before.frontends(w.node), after.frontends(w.node)
	asked := 0
	var wrong error
	dial := func(f frontend) {
		asked++
		wrong = errors.Join(wrong, w.askOne(f, was, will))
	}
	for f := range k.frontends {
		if !was[f].equal(will[f]) && answers(f) {
			dial(f)
		}
	}
	for f := range k.frontends {
		if asked == 0 && answers(f) {
			dial(f)
		}
	}
	return wrong
}

// answers tells whether the frontend may be asked: that of the large service has
// backends that are nowhere, and those on loopback are for the node itself.
func answers(f frontend) bool {
	large := service(largeNumber)
	return !f.addr.Addr().IsLoopback() && f.addr.Port() != large.Ports[0].NodePort && !slices.Contains(large.ClusterIPs, f.addr.Addr())
}

// askOne dials a frontend from where it is to work.
func (w *world) askOne(f frontend, was, will map[frontend]answer) error {
	hosts := []func() (*testbed.Prober, error){
		func() (*testbed.Prober, error) { return w.stack.Probe(&w.node.Pods[0].Host) },
		func() (*testbed.Prober, error) { return w.stack.ProbeBypass(&w.node.Pods[1].Host) },
	}
	if f.addr.Port() >= 30000 {
		hosts = append(hosts, func() (*testbed.Prober, error) { return w.stack.Probe(w.stack.Client) })
	}
	allowed := slices.Concat(was[f].backends, will[f].backends)
	mayRefuse := len(was[f].backends) == 0 || len(will[f].backends) == 0
	for i, host := range hosts {
		prober, err := host()
		if err != nil {
			return err
		}
		a, err := prober.Once(probe.Dial{Network: f.network(), Target: f.addr, Abort: true, Timeout: patience}, probe.Exchange{})
		switch {
		case err != nil:
			return err
		case a.Failure == probe.None && slices.Contains(allowed, a.Address.String()):
		case a.Failure == probe.Refused && mayRefuse:
		default:
			return fmt.Errorf("frontend %s by way %d: %+v, want one of %v (may refuse: %v)", f, i, a, allowed, mayRefuse)
		}
	}
	return nil
}
