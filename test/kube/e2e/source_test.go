// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

// sourceFaults is a cluster with two calculators, of which one reaches the API
// server directly and one through a relay that can be frozen, and with traffic
// that goes on all the time.
type sourceFaults struct {
	*fixture
	direct, relayed *replica
	relay           *controlplane.Forward
	tokenFile       string // of the token of both
	traffic         *traffic
	// kept is the service that is dialled, with two backends.
	kept      testbed.Service
	near, far *testbed.Pod
}

// TestSourceFaults lets calculators lag, read anew, lose what they read from
// and be set back, while agents move between them and traffic goes on. No agent
// may ever be taken backwards: a backend that has gone must not answer again.
func TestSourceFaults(t *testing.T) {
	f := startSourceFaults(t)
	t.Run("frozen", f.testFrozen)
	t.Run("frozen and noticed", f.testFrozenAndNoticed)
	t.Run("slow", f.testSlow)
	t.Run("fresh replica", f.testFreshReplica)
	t.Run("API server away", f.testWithoutAPIServer)
	t.Run("etcd away", f.testWithoutEtcd)
	t.Run("token refused", f.testWithoutRight)
	t.Run("etcd restored", f.testEtcdRestored)
	t.Run("etcd restored and gone on", f.testEtcdRestoredAndGoneOn)
	t.Run("etcd restored and raised", f.testEtcdRestoredAndRaised)
}

func startSourceFaults(t *testing.T) *sourceFaults {
	t.Helper()
	f := &sourceFaults{fixture: startPlane(t, testbed.Options{Nodes: 2, PodsPerNode: 2})}
	ctx := harness.Limit(t, 90*time.Second)
	var err error
	const relayAddress = "127.0.0.1:6444"
	if f.relay, err = f.plane.Forward(f.Control.NetNS, relayAddress); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.relay.Close(); err != nil {
			t.Error(err)
		}
	})
	f.tokenFile = filepath.Join(t.TempDir(), "token")
	f.writeToken(ctx, t)
	if f.kubeconfig, err = f.plane.TokenFileKubeconfig("", "direct", f.tokenFile); err != nil {
		t.Fatal(err)
	}
	relayedConfig, err := f.plane.TokenFileKubeconfig(relayAddress, "relayed", f.tokenFile)
	if err != nil {
		t.Fatal(err)
	}
	f.direct, f.relayed = f.newReplica(t, 0, f.kubeconfig), f.newReplica(t, 1, relayedConfig)
	f.direct.startSynced(ctx, t)
	f.agents, err = f.StartAgents(ctx, testbed.AgentOptions{Binaries: binaries, Calculators: []string{f.direct.address, f.relayed.address}})
	if err != nil {
		t.Fatal(err)
	}
	f.relayed.startSynced(ctx, t)
	f.near, f.far = f.Nodes[0].Pods[1], f.Nodes[1].Pods[0]
	f.kept = newService("kept", 20, true, f.near.Endpoint(), f.far.Endpoint())
	f.apply(ctx, t, f.kept.Objects()...)
	f.waitServices(ctx, t, f.kept)
	f.traffic = f.dial(t, &f.Nodes[0].Pods[0].Host, netip.AddrPortFrom(f.kept.ClusterIPs[0], 80), f.near.Name, f.far.Name)
	return f
}

// serve gives the dialled service these backends and waits until all nodes
// have them; from then on nobody else may answer.
func (f *sourceFaults) serve(ctx context.Context, t *testing.T, pods ...*testbed.Pod) {
	t.Helper()
	f.traffic.allow(f.near.Name, f.far.Name)
	f.kept.Endpoints = nil
	var names []string
	for _, pod := range pods {
		f.kept.Endpoints = append(f.kept.Endpoints, pod.Endpoint())
		names = append(names, pod.Name)
	}
	f.apply(ctx, t, f.kept.Objects()...)
	f.waitServices(ctx, t, f.kept)
	f.traffic.allow(names...)
}

// toDirect brings the agents to the direct calculator and both calculators up.
func (f *sourceFaults) toDirect(ctx context.Context, t *testing.T) {
	t.Helper()
	f.ensure(ctx, t, f.direct)
	f.relayed.kill(t)
	f.direct.awaitAgents(ctx, t)
	f.relayed.startSynced(ctx, t)
}

// testFrozen: nothing gets through to one calculator. It refuses the agents
// that know more, and serves them when it has caught up.
func (f *sourceFaults) testFrozen(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	f.serve(ctx, t, f.near, f.far)
	gone := newService("gone", 21, false, f.near.Endpoint())
	f.apply(ctx, t, gone.Objects()...)
	f.waitServices(ctx, t, gone)
	f.toDirect(ctx, t)

	f.relay.Freeze(true)
	defer f.relay.Thaw()
	f.serve(ctx, t, f.far)
	f.delete(ctx, t, gone.Objects()...)
	f.waitNoServices(ctx, t, gone)
	refused := f.relayed.refusals(ctx, t)
	f.direct.kill(t)
	f.relayed.awaitRefused(ctx, t, refused)
	f.waitServices(ctx, t, f.kept)
	f.waitNoServices(ctx, t, gone)

	// What nobody has told the agents of yet comes with the thaw.
	late := newService("late", 22, false, f.far.Endpoint())
	f.apply(ctx, t, late.Objects()...)
	f.relay.Thaw()
	f.relayed.awaitAgents(ctx, t)
	f.waitServices(ctx, t, f.kept, late)
	f.waitNoServices(ctx, t, gone)
	f.delete(ctx, t, late.Objects()...)
	f.waitNoServices(ctx, t, late)
}

// testFrozenAndNoticed: the calculator's connections are frozen for ever, but
// new ones are not. It finds out by itself, at the latest when an agent comes
// that knows more.
func (f *sourceFaults) testFrozenAndNoticed(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	f.serve(ctx, t, f.near, f.far)
	f.toDirect(ctx, t)
	f.relay.Freeze(false)
	defer f.relay.Thaw()
	f.serve(ctx, t, f.far)
	begin := time.Now()
	f.direct.kill(t)
	f.relayed.awaitAgents(ctx, t)
	t.Logf("agents were in sync with a calculator whose watches were frozen after %v", time.Since(begin).Round(time.Millisecond))
	f.serve(ctx, t, f.near)
}

// testSlow: what one calculator hears comes late. Agents that know more wait
// for it, or are refused, and never go back.
func (f *sourceFaults) testSlow(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	f.serve(ctx, t, f.near, f.far)
	f.toDirect(ctx, t)
	f.relay.Delay(1500 * time.Millisecond)
	defer f.relay.Delay(0)
	f.serve(ctx, t, f.far)
	f.direct.kill(t)
	f.relayed.awaitAgents(ctx, t)
	f.serve(ctx, t, f.near)
}

// testFreshReplica: a calculator that has just listed is at a higher position
// than one that has watched for long, though both know the same. Agents that
// come from the former must not have to wait for the latter's next bookmark,
// which takes up to a minute.
func (f *sourceFaults) testFreshReplica(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	f.ensure(ctx, t, f.direct)
	for range 3 { // versions go on, those of Nodes and Pods do not
		f.serve(ctx, t, f.far)
		f.serve(ctx, t, f.near, f.far)
	}
	f.relayed.kill(t)
	f.relayed.startSynced(ctx, t)
	if older, newer := position(ctx, t, f.direct), position(ctx, t, f.relayed); older["nodes"] >= newer["nodes"] {
		t.Fatalf("the fresh calculator is at %v, the other at %v: there is nothing to see", newer, older)
	}
	f.restartAgents(t, f.relayed)
	f.relayed.awaitAgents(ctx, t)
	f.serve(ctx, t, f.far) // with which the agents get the position
	f.restartAgents(t, f.direct)
	begin := time.Now()
	f.direct.awaitAgents(ctx, t)
	took := time.Since(begin)
	t.Logf("agents were in sync with the older calculator after %v", took.Round(time.Millisecond))
	if took > 30*time.Second {
		t.Errorf("that took %v", took)
	}
	f.restartAgents(t, f.direct, f.relayed)
	f.serve(ctx, t, f.near, f.far)
}

// ensure starts a calculator that does not run.
func (f *sourceFaults) ensure(ctx context.Context, t *testing.T, r *replica) {
	t.Helper()
	if r.process.Running() != nil {
		r.startSynced(ctx, t)
	}
}

func position(ctx context.Context, t *testing.T, r *replica) map[string]uint64 {
	t.Helper()
	status, err := r.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetPosition().GetResourceVersions()
}

// epochCommand is what problems say an operator has to run.
var epochCommand = regexp.MustCompile(`kubectl annotate namespace kube-system --overwrite (millrace\.io/epoch=\d+)`)

// testEtcdRestored restores an older backup of etcd with its revisions as they
// were. Whatever was told since is worth nothing, but nobody can know that this
// was meant: agents keep what they have until an operator says so.
func (f *sourceFaults) testEtcdRestored(t *testing.T) {
	ctx := harness.Limit(t, 150*time.Second)
	f.ensure(ctx, t, f.direct)
	f.ensure(ctx, t, f.relayed)
	backup := filepath.Join(t.TempDir(), "backup.db")
	f.serve(ctx, t, f.near, f.far)
	// This one is deleted after the backup, so that it comes back with it, and
	// the other way round.
	revived := newService("revived", 23, true, f.near.Endpoint())
	lost := newService("lost", 24, true, f.far.Endpoint())
	f.apply(ctx, t, revived.Objects()...)
	f.waitServices(ctx, t, revived)
	if err := f.plane.SaveEtcd(ctx, backup); err != nil {
		t.Fatal(err)
	}
	// The API server writes a little by itself, which must not make up for what
	// the backup lacks while this test runs.
	var noise []testbed.Service
	for n := range 30 {
		noise = append(noise, newService(fmt.Sprint("noise-", n), 40+n, false, f.near.Endpoint()))
	}
	f.apply(ctx, t, objectsOf(noise...)...)
	f.delete(ctx, t, objectsOf(noise...)...)
	f.apply(ctx, t, lost.Objects()...)
	f.delete(ctx, t, revived.Objects()...)
	f.serve(ctx, t, f.far)
	f.waitServices(ctx, t, lost)
	f.waitNoServices(ctx, t, revived)

	if err := f.plane.RestoreEtcd(ctx, backup, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*replica{f.direct, f.relayed} {
		r.awaitEnd(ctx, t, "set back", "etcd", "millrace.io/epoch=1")
		r.startSynced(ctx, t) // as the kubelet does
	}
	// Both say what to do, and so do the agents, which keep what they have,
	// also when they are restarted.
	message := f.direct.awaitProblem(ctx, t, "Namespace", "kube-system", "etcd", "keep what they have")
	f.relayed.awaitProblem(ctx, t, "Namespace", "kube-system", "etcd", "keep what they have")
	if alarm, err := f.direct.metric(ctx, f.fixture, "millrace_calculator_problem"); err != nil || alarm < 1 {
		t.Errorf("the metric of problems is %v, %v", alarm, err)
	}
	if err := f.agents[0].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.agents[0].Start(); err != nil {
		t.Fatal(err)
	}
	f.awaitLastError(ctx, t, "knows more than this calculator", "millrace.io/epoch=1")
	f.waitServices(ctx, t, f.kept, lost)
	f.waitNoServices(ctx, t, revived)

	command := epochCommand.FindStringSubmatch(message)
	if command == nil {
		t.Fatalf("no command in %q", message)
	}
	f.traffic.allow(f.near.Name, f.far.Name)
	if _, err := f.plane.Kubectl(ctx, nil, "annotate", "namespace", "kube-system", "--overwrite", command[1]); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*replica{f.direct, f.relayed} {
		r.awaitEnd(ctx, t, "epoch")
		r.startSynced(ctx, t)
	}
	f.kept.Endpoints = []testbed.Endpoint{f.near.Endpoint(), f.far.Endpoint()}
	f.waitServices(ctx, t, f.kept, revived)
	f.waitNoServices(ctx, t, lost)
	f.expectEpoch(ctx, t, "/1")
	f.delete(ctx, t, revived.Objects()...)
	f.waitNoServices(ctx, t, revived)
	f.direct.await(ctx, t, "no problem is left", func(s *calculatorv1.GetStatusResponse) bool { return len(s.GetProblems()) == 0 })
}

// testEtcdRestoredAndGoneOn restores a backup that is so young that versions
// have passed those of before when a calculator hears of the API server again:
// no version tells it that it has missed something.
func (f *sourceFaults) testEtcdRestoredAndGoneOn(t *testing.T) {
	ctx := harness.Limit(t, 90*time.Second)
	f.ensure(ctx, t, f.relayed)
	f.direct.kill(t)
	f.relayed.awaitAgents(ctx, t)
	backup := filepath.Join(t.TempDir(), "backup.db")
	f.serve(ctx, t, f.near, f.far)
	revived := newService("revived", 23, true, f.near.Endpoint())
	f.apply(ctx, t, revived.Objects()...)
	f.waitServices(ctx, t, revived)
	if err := f.plane.SaveEtcd(ctx, backup); err != nil {
		t.Fatal(err)
	}
	f.delete(ctx, t, revived.Objects()...)
	f.waitNoServices(ctx, t, revived)

	f.relay.Freeze(true)
	defer f.relay.Thaw()
	if err := f.plane.RestoreEtcd(ctx, backup, 0); err != nil {
		t.Fatal(err)
	}
	noise := newService("noise", 25, false, f.near.Endpoint())
	for range 10 {
		f.apply(ctx, t, noise.Objects()...)
		f.delete(ctx, t, noise.Objects()...)
	}
	f.relay.Thaw()
	f.waitServices(ctx, t, f.kept, revived)
	if err := f.relayed.process.Running(); err != nil {
		t.Error(err)
	}
	f.delete(ctx, t, revived.Objects()...)
	f.waitNoServices(ctx, t, revived)
	f.direct.startSynced(ctx, t)
}

// testEtcdRestoredAndRaised restores with revisions raised beyond all that
// were given out, as etcd's documentation says for clusters with watchers. Then
// there is nothing for an operator to do.
func (f *sourceFaults) testEtcdRestoredAndRaised(t *testing.T) {
	ctx := harness.Limit(t, 90*time.Second)
	backup := filepath.Join(t.TempDir(), "backup.db")
	f.serve(ctx, t, f.near, f.far)
	if err := f.plane.SaveEtcd(ctx, backup); err != nil {
		t.Fatal(err)
	}
	lost := newService("lost", 24, true, f.far.Endpoint())
	f.apply(ctx, t, lost.Objects()...)
	f.waitServices(ctx, t, lost)
	if err := f.plane.RestoreEtcd(ctx, backup, 1_000_000_000); err != nil {
		t.Fatal(err)
	}
	f.waitNoServices(ctx, t, lost)
	f.serve(ctx, t, f.near)
	for _, r := range []*replica{f.direct, f.relayed} {
		if err := r.process.Running(); err != nil {
			t.Error(err)
		}
	}
}

// expectEpoch demands that the agents' epoch ends so.
func (f *sourceFaults) expectEpoch(ctx context.Context, t *testing.T, end string) {
	t.Helper()
	for _, agent := range f.agents {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if epoch := status.GetCalculator().GetEpoch(); !strings.HasSuffix(epoch, end) {
			t.Errorf("%s: the epoch is %q, want one that ends in %s", agent.Node.Name, epoch, end)
		}
	}
}
