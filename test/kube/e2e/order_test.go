// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// subject is a service that TestEveryOrder writes and deletes object by object.
type subject struct {
	service testbed.Service
	// What is in the API server now.
	exists bool
	slices map[int][]testbed.Endpoint
}

// programmed is what nodes should make of the objects there are.
func (s *subject) programmed() testbed.Service {
	service := s.service
	service.Endpoints = nil
	for family, endpoints := range s.slices {
		for _, e := range endpoints {
			if family == 4 {
				e.IPv6 = netip.Addr{}
			} else {
				e.IPv4 = netip.Addr{}
			}
			service.Endpoints = append(service.Endpoints, e)
		}
	}
	return service
}

// slice is the object of one family with these endpoints.
func (s *subject) slice(family int, endpoints []testbed.Endpoint) runtime.Object {
	service := s.service
	service.Endpoints = endpoints
	return service.Slice(family)
}

// TestEveryOrder writes, edits and deletes Services and EndpointSlices, each
// object by itself and in random order, with pods and a node coming and going,
// and compares the nodes' maps with what they were before.
func TestEveryOrder(t *testing.T) {
	f := start(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	ctx := harness.Limit(t, 3*time.Minute)
	kept := newService("kept", 20, true, f.Pods()[0].Endpoint())
	f.apply(ctx, t, kept.Objects()...)
	f.waitServices(ctx, t, kept)
	baseline := map[*testbed.Agent][]string{}
	for _, agent := range f.agents {
		baseline[agent] = contents(ctx, t, agent)
		for _, name := range []string{"frontends_v4", "frontends_v6", "backends_v4", "backends_v6", "routes_v4", "routes_v6"} {
			if !slices.ContainsFunc(baseline[agent], func(entry string) bool { return strings.HasPrefix(entry, name) }) {
				t.Fatalf("%s: nothing of %s is compared", agent.Node.Name, name)
			}
		}
	}
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			ctx := harness.Limit(t, 3*time.Minute)
			c := &churn{fixture: f, random: rand.New(rand.NewPCG(seed, 7))}
			for n := range 6 {
				c.subjects = append(c.subjects, &subject{
					service: newService(fmt.Sprintf("churn-%d", n), 30+n, true),
					slices:  map[int][]testbed.Endpoint{},
				})
			}
			for range 80 {
				c.step(ctx, t)
			}
			for _, s := range c.subjects {
				if s.exists {
					f.waitServices(ctx, t, s.programmed())
				} else {
					f.waitNoServices(ctx, t, s.service)
				}
			}
			c.clear(ctx, t)
			for _, agent := range f.agents {
				waitBaseline(ctx, t, agent, baseline[agent])
			}
		})
	}
}

// churn is one random sequence.
type churn struct {
	*fixture
	random   *rand.Rand
	subjects []*subject
}

// step changes one object.
func (c *churn) step(ctx context.Context, t *testing.T) {
	t.Helper()
	s := c.subjects[c.random.IntN(len(c.subjects))]
	family := []int{4, 6}[c.random.IntN(2)]
	switch c.random.IntN(10) {
	case 0, 1, 2:
		s.service.Ports = slices.Clone(s.service.Ports)
		port, nodePort := uint16(80+c.random.IntN(3)), uint16(0)
		if c.random.IntN(2) == 0 {
			nodePort = s.service.Ports[0].Port + 31000 + uint16(10*slices.Index(c.subjects, s))
		}
		for i := range s.service.Ports {
			s.service.Ports[i].Port, s.service.Ports[i].NodePort = port, nodePort
		}
		c.apply(ctx, t, s.service.Object())
		s.exists = true
	case 3, 4, 5:
		s.slices[family] = c.someEndpoints()
		c.apply(ctx, t, s.slice(family, s.slices[family]))
	case 6:
		c.delete(ctx, t, s.service.Object())
		s.exists = false
	case 7:
		c.delete(ctx, t, s.slice(family, nil))
		delete(s.slices, family)
	case 8:
		pod := c.Pods()[c.random.IntN(len(c.Pods()))].Object()
		c.delete(ctx, t, pod)
		c.apply(ctx, t, pod)
	case 9:
		phantom := c.phantom()
		c.apply(ctx, t, phantom)
		c.delete(ctx, t, phantom)
	}
}

// phantom is a node that has no agent.
func (c *churn) phantom() *corev1.Node {
	node := c.Nodes[0].Object()
	node.Name = "phantom"
	node.Spec.PodCIDR, node.Spec.PodCIDRs = "10.244.99.0/24", []string{"10.244.99.0/24", "fd00:10:244:99::/64"}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.99"}}
	return node
}

func (c *churn) someEndpoints() []testbed.Endpoint {
	var endpoints []testbed.Endpoint
	for _, pod := range c.Pods() {
		if c.random.IntN(2) == 0 {
			endpoints = append(endpoints, pod.Endpoint())
		}
	}
	return endpoints
}

// clear deletes everything, in random order.
func (c *churn) clear(ctx context.Context, t *testing.T) {
	t.Helper()
	var objects []runtime.Object
	for _, s := range c.subjects {
		objects = append(objects, s.service.Object(), s.slice(4, nil), s.slice(6, nil))
	}
	c.random.Shuffle(len(objects), func(i, k int) { objects[i], objects[k] = objects[k], objects[i] })
	for _, object := range objects {
		c.delete(ctx, t, object)
	}
}
