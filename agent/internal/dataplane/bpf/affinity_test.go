// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// TestAffinities lets clients keep backends: those of the service are listed and
// counted until their time is over, or the service has no affinity any more;
// those of no service go when the node is in sync.
func TestAffinities(t *testing.T) {
	n := newNode(t)
	devices(t)
	all := cluster1()
	service := all[len(all)-1]
	service.GetService().SessionAffinity = &dataplanev1.SessionAffinity{TimeoutSeconds: 60}
	if result := n.give(false, all...); len(result.Errors) != 0 {
		t.Fatalf("errors %v", result.Errors)
	}
	var frontend layout.Frontend
	key := layout.FrontendKeyV4{Addr: layout.V4(ip("10.9.0.1")), Port: layout.Port(80), Proto: 6}
	if err := n.kernel.V4.Frontends.Lookup(&key, &frontend); err != nil || frontend.AffinityTimeout != 60 {
		t.Fatalf("frontend %v, %v", frontend, err)
	}
	now := time.Duration(mbpf.CoarseNow())
	put := func(m *ebpf.Map, key layout.AffinityKeyV4, backend string, idle time.Duration) {
		t.Helper()
		v := layout.AffinityV4{BackendAddr: layout.V4(ip(backend)), BackendPort: layout.Port(8080),
			Used: layout.AffinityTick(now - idle)}
		if err := m.Put(&key, &v); err != nil {
			t.Fatal(err)
		}
	}
	outside, _ := layout.NewAffinityKey[layout.V4](netip.MustParseAddr("192.0.2.1"), frontend.ServiceID)
	put(n.kernel.V4.Affinity, outside, "10.1.0.5", 30*time.Second)
	put(n.kernel.V4.Affinity, layout.NewSocketAffinityKey[layout.V4](9, frontend.ServiceID), "10.1.0.99", 50*time.Second)
	put(n.kernel.V4.Affinity, layout.NewSocketAffinityKey[layout.V4](8, frontend.ServiceID), "10.1.0.5", 61*time.Second)
	put(n.kernel.V4.Affinity, layout.NewSocketAffinityKey[layout.V4](8, 4711), "10.1.0.5", 30*time.Second)
	list := func() (lines []string) {
		t.Helper()
		err := n.plane.Affinities(func(c *agentv1.ListAffinitiesResponse) error {
			lines = append(lines, fmt.Sprintf("%s %d %t of %q %q at %s usable %t over %t", c.GetClient(), c.GetNetnsCookie(), c.GetHost(),
				c.GetService(), c.GetPortName(), c.GetBackend(), c.GetUsable(), c.GetExpires().AsDuration() <= 0))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(lines)
		return lines
	}
	live := []string{
		` 9 true of "default/web" "http" at 10.1.0.99:8080 usable false over false`,
		`192.0.2.1 0 false of "default/web" "http" at 10.1.0.5:8080 usable true over false`,
	}
	stranger := ` 8 false of "" "" at 10.1.0.5:8080 usable false over true`
	equal(t, "clients", list(), []string{
		stranger,
		` 8 false of "default/web" "http" at 10.1.0.5:8080 usable true over true`, live[0], live[1],
	})
	pass := func() {
		t.Helper()
		if err := n.plane.forgetAffinities(); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	// Until the node is in sync a service may still turn up.
	equal(t, "clients after a pass", list(), append([]string{stranger}, live...))
	n.plane.Apply(context.Background(), dataplane.Change{InSync: true})
	pass()
	equal(t, "clients when the node is in sync", list(), live)
	if got, fill := n.plane.State().GetAffinities(), n.plane.Fill(); got != 2 || fill["affinity_v4"] != 2 || fill["affinity_v6"] != 0 {
		t.Errorf("%d clients counted, fill %v", got, fill)
	}
	equal(t, "differences", n.diff(), nil)
	if got := n.affinityOf("default/web"); got != 60 {
		t.Errorf("listed with an affinity of %d seconds", got)
	}
	// What cannot be is told, and the rest of the service goes on.
	for i, seconds := range []uint32{0, 86401} {
		service.Version = uint64(10 + i)
		service.GetService().SessionAffinity.TimeoutSeconds = seconds
		result := n.give(true, service)
		if len(result.Errors) != 1 || result.Errors[0].GetField() != "session_affinity.timeout_seconds" ||
			!strings.Contains(result.Errors[0].GetMessage(), "between 1 and 86400") || n.affinityOf("default/web") != 0 {
			t.Errorf("%d seconds: errors %v", seconds, result.Errors)
		}
	}
	service.Version, service.GetService().SessionAffinity = 20, nil
	if result := n.give(true, service); len(result.Errors) != 0 {
		t.Errorf("errors %v", result.Errors)
	}
	pass()
	equal(t, "clients without affinity", list(), nil)
}

// affinityOf is the seconds that a service's frontends are listed with.
func (n *testNode) affinityOf(service string) (seconds uint32) {
	n.Helper()
	namespace, name, _ := strings.Cut(service, "/")
	err := n.plane.Services(namespace, name, func(s *agentv1.ListServicesResponse) error {
		if len(s.GetFrontends()) == 0 {
			n.Error("no frontends")
		}
		for i, f := range s.GetFrontends() {
			if i > 0 && f.GetAffinitySeconds() != seconds {
				n.Errorf("frontends differ: %v", s.GetFrontends())
			}
			seconds = f.GetAffinitySeconds()
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
	return seconds
}
