// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// resumeLimit is the most that a reconnect may cost on the wire when nothing
// has changed.
const resumeLimit = 64 << 10

// perChange is the most that one changed resource may add: the names in its
// bucket, and the resource.
const perChange = 8 << 10

// testResume counts what a reconnect costs, TLS and all, in both directions,
// up to the acknowledgement.
func testResume(t *testing.T, f *fixture) {
	ctx := harness.Limit(t, 5*time.Minute)
	agent := f.agents[0]
	first, second := f.calculators[0], f.calculators[1]
	f.reconnect(ctx, t, agent, first, second)
	same := f.reconnect(ctx, t, agent, first, second)
	check := func(where string, cost traffic) {
		t.Logf("figure: reconnect to %s, nothing changed: %d bytes up, %d down", where, cost.up, cost.down)
		if cost.total() > resumeLimit {
			t.Errorf("reconnect to %s cost %d bytes, want at most %d", where, cost.total(), resumeLimit)
		}
	}
	check("the same calculator", same)
	check("the other replica", f.reconnect(ctx, t, agent, second, first))
	if err := second.process.Kill(); err != nil {
		t.Fatal(err)
	}
	second.start(t)
	second.waitSynced(ctx, t)
	f.openProxies(ctx, t)
	f.settle(ctx, t)
	check("a restarted calculator", f.reconnect(ctx, t, agent, second, first))

	// With changes the cost grows with their number.
	counts := []int{1, 10, 100}
	if reliability.Soak() {
		counts = append(counts, 1000, services)
	}
	for generation, changes := range counts {
		first.proxy.set(false)
		second.proxy.set(false)
		var objects []runtime.Object
		changed := make([]testbed.Service, changes)
		for i := range changes {
			changed[i] = bulkService(i*(services/changes), generation+1)
			objects = append(objects, changed[i].Slice(4))
		}
		last := changed[changes-1]
		f.apply(ctx, t, objects[:changes-1]...)
		f.apply(ctx, t, objects[changes-1])
		f.waitRead(ctx, t, map[string]uint64{"endpointslices": f.versionOf(ctx, t, last)})
		cost := f.reconnect(ctx, t, agent, first, second)
		t.Logf("figure: reconnect after %d changed EndpointSlices: %d bytes up, %d down, %d per change", changes, cost.up, cost.down,
			(cost.total()-same.total())/int64(changes))
		if allowed := resumeLimit + int64(changes)*perChange; cost.total() > allowed {
			t.Errorf("%d changes cost %d bytes, want at most %d", changes, cost.total(), allowed)
		}
		few := []testbed.Service{changed[0], changed[changes/2], last}
		if err := agent.WaitServices(ctx, few...); err != nil {
			t.Fatal(err)
		}
	}
	second.proxy.set(true)
}

// versionOf is the resourceVersion of a service's EndpointSlice.
func (f *fixture) versionOf(ctx context.Context, t *testing.T, service testbed.Service) uint64 {
	t.Helper()
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	slice, err := client.DiscoveryV1().EndpointSlices(service.Namespace).Get(ctx, service.Slice(4).Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	version, err := strconv.ParseUint(slice.ResourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// reconnect cuts the agent off and lets it connect to one calculator only. It
// returns what that cost on the connection that was taken; the calculator may
// refuse others before, until it is sure that it knows as much as the agent.
func (f *fixture) reconnect(ctx context.Context, t *testing.T, agent *testbed.Agent, to, other *calculator) traffic {
	t.Helper()
	other.proxy.set(false)
	to.proxy.set(false)
	to.proxy.set(true)
	to.waitAt(ctx, t, agent)
	return to.proxy.seen()
}
