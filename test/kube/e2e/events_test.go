// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestTold lets an object and a node be wrong: `kubectl describe` shows it, once,
// although there are two calculators.
func TestTold(t *testing.T) {
	f := start(t, testbed.Options{Nodes: 1, PodsPerNode: 2})
	ctx := harness.Limit(t, 120*time.Second)
	f.newReplica(t, 1, f.kubeconfig).startSynced(ctx, t)
	pod := f.Nodes[0].Pods[0]

	t.Run("service", func(t *testing.T) {
		owner := newService("owner", 20, false, pod.Endpoint())
		owner.ExternalIPs = []netip.Addr{testbed.ExternalIP(4, 20)}
		f.apply(ctx, t, owner.Objects()...)
		f.waitServices(ctx, t, owner)
		thief := newService("thief", 21, false, pod.Endpoint())
		thief.ExternalIPs, thief.Ports = owner.ExternalIPs, thief.Ports[:1]
		f.apply(ctx, t, thief.Objects()...)
		f.awaitDescribed(ctx, t, "MillraceProblem", "spec.externalIPs[0]", "service", "thief", "-n", testbed.Namespace)
		if text, err := f.describe(ctx, "service", "owner", "-n", testbed.Namespace); err != nil || strings.Contains(text, "MillraceProblem") {
			t.Errorf("what is right is told as wrong (%v):\n%s", err, text)
		}
	})

	t.Run("node", func(t *testing.T) {
		agent := f.agents[0]
		if err := agent.Process.Stop(); err != nil {
			t.Fatal(err)
		}
		plain := filepath.Join(t.TempDir(), "millrace")
		if err := os.Mkdir(plain, 0o700); err != nil {
			t.Fatal(err)
		}
		agent.SetArgs("--bpf-dir", plain)
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		f.awaitDescribed(ctx, t, "MillraceNodeProblem", "is not on a BPF filesystem", "node", agent.Node.Name)
		agent.SetArgs()
		if err := agent.Process.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("API servers", func(t *testing.T) { testAPIServersKept(ctx, t, f) })
}

func (f *fixture) describe(ctx context.Context, what ...string) (string, error) {
	return f.plane.Kubectl(ctx, nil, append([]string{"describe"}, what...)...)
}

// awaitDescribed waits until `kubectl describe` shows one Event of the reason with
// the words.
func (f *fixture) awaitDescribed(ctx context.Context, t *testing.T, reason, words string, what ...string) {
	t.Helper()
	err := testbed.Eventually(ctx, func() error {
		text, err := f.describe(ctx, what...)
		if err != nil {
			return err
		}
		if n := strings.Count(text, reason); n != 1 || !strings.Contains(text, words) {
			return fmt.Errorf("%d Events of reason %s, want one with %q:\n%s", n, reason, words, text)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// testAPIServersKept empties and deletes the EndpointSlice of the Service
// default/kubernetes: its last backend stays, until there is another one.
func testAPIServersKept(ctx context.Context, t *testing.T, f *fixture) {
	agent, pod := f.agents[0], f.Nodes[0].Pods[0]
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	service, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name, https, ready := "https", int32(apiServerPort), true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &https}},
	}
	give := func(addresses ...string) {
		t.Helper()
		changed := slice.DeepCopy()
		for _, a := range addresses {
			changed.Endpoints = append(changed.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		}
		f.apply(ctx, t, changed)
	}
	backends := func(want string) error {
		got, err := serviceBackends(ctx, agent, "default", "kubernetes")
		if err == nil && got != want {
			err = fmt.Errorf("backends of %s: %s, want %s", service.Spec.ClusterIP, got, want)
		}
		return err
	}
	// A change to something else, made after, has come when it was time for this
	// one to come too.
	mark := 0
	marked := func() {
		t.Helper()
		mark++
		other := newService(fmt.Sprintf("mark-%d", mark), 30+mark, false, pod.Endpoint())
		// Slices come by a watch of their own, in order.
		f.apply(ctx, t, other.Objects()...)
		f.waitServices(ctx, t, other)
	}
	server := func(a netip.Addr) string { return netip.AddrPortFrom(a, apiServerPort).String() }
	give(f.Control.IPv4.String())
	if err := testbed.Eventually(ctx, func() error { return backends(server(f.Control.IPv4)) }); err != nil {
		t.Fatal(err)
	}
	give()
	marked()
	if err := backends(server(f.Control.IPv4)); err != nil {
		t.Errorf("emptied: %v", err)
	}
	f.delete(ctx, t, slice)
	marked()
	if err := backends(server(f.Control.IPv4)); err != nil {
		t.Errorf("deleted: %v", err)
	}
	give(pod.IPv4.String())
	if err := testbed.Eventually(ctx, func() error { return backends(server(pod.IPv4)) }); err != nil {
		t.Errorf("there again: %v", err)
	}
}

// serviceBackends are those that a node's kernel has of a service's first
// frontend.
func serviceBackends(ctx context.Context, agent *testbed.Agent, namespace, name string) (string, error) {
	list, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{Namespace: namespace, Name: name})
	if err != nil {
		return "", err
	}
	service, err := list.Recv()
	if err != nil {
		return "", err
	}
	var backends []string
	for _, b := range service.GetFrontends()[0].GetBackends() {
		backends = append(backends, fmt.Sprintf("%s:%d", b.GetAddress(), b.GetPort()))
	}
	slices.Sort(backends)
	return strings.Join(backends, " "), nil
}
