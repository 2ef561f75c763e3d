// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestObjects writes services of every type to the API server, by client-go
// and by kubectl, and dials them.
func TestObjects(t *testing.T) {
	f := start(t, testbed.Options{Nodes: 3, PodsPerNode: 2})
	ctx := harness.Limit(t, 90*time.Second)
	near, far := f.Nodes[0].Pods[1], f.Nodes[1].Pods[0]

	t.Run("client-go", func(t *testing.T) { testTypes(ctx, t, f, near, far) })
	t.Run("kubectl", func(t *testing.T) { testKubectl(ctx, t, f, near, far) })
	t.Run("node object changes", func(t *testing.T) { testNodeAddress(ctx, t, f, near) })
}

func testTypes(ctx context.Context, t *testing.T, f *fixture, near, far *testbed.Pod) {
	cluster := newService("cluster-ip", 20, false, near.Endpoint(), far.Endpoint())
	node := newService("node-port", 21, true, near.Endpoint(), far.Endpoint())
	balanced := newService("load-balancer", 22, true, far.Endpoint())
	balanced.LoadBalancerIPs = []netip.Addr{testbed.ExternalIP(4, 22), testbed.ExternalIP(6, 22)}
	external := newService("external-ip", 23, false, near.Endpoint())
	external.ExternalIPs = []netip.Addr{testbed.ExternalIP(4, 23), testbed.ExternalIP(6, 23)}
	host := newService("host-network", 24, false, f.Nodes[1].Endpoint())
	programmed := []testbed.Service{cluster, node, balanced, external, host}

	// These two have no frontends. They come first, so that they have been
	// seen by the time that what follows is programmed.
	headless := newService("headless", 25, false, near.Endpoint())
	headlessObjects := headless.Objects()
	headlessSpec := &headlessObjects[0].(*corev1.Service).Spec
	headlessSpec.ClusterIP, headlessSpec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
	f.apply(ctx, t, headlessObjects...)
	name := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: testbed.Namespace, Name: "external-name"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"},
	}
	f.apply(ctx, t, name)

	for _, service := range programmed {
		f.apply(ctx, t, service.Objects()...)
	}
	f.waitServices(ctx, t, programmed...)
	f.waitNoServices(ctx, t, headless, testbed.Service{Name: name.Name})

	pod := &f.Nodes[2].Pods[0].Host
	for _, network := range []string{probe.TCP, probe.UDP} {
		for i := range 2 {
			f.expectAnswers(t, pod, network, netip.AddrPortFrom(cluster.ClusterIPs[i], 80), near.Name, far.Name)
			f.expectAnswers(t, &f.Nodes[0].Host, network, netip.AddrPortFrom(cluster.ClusterIPs[i], 80), near.Name, far.Name)
			f.expectAnswers(t, pod, network, netip.AddrPortFrom(host.ClusterIPs[i], 80), f.Nodes[1].Name)
			family := []int{4, 6}[i]
			f.expectAnswers(t, f.Client, network, netip.AddrPortFrom(f.Nodes[0].IP(family), node.Ports[0].NodePort), near.Name, far.Name)
			f.expectAnswers(t, f.Client, network, netip.AddrPortFrom(balanced.LoadBalancerIPs[i], 80), far.Name)
			f.expectAnswers(t, f.Client, network, netip.AddrPortFrom(external.ExternalIPs[i], 80), near.Name)
		}
	}
	for _, service := range append(programmed, headless) {
		f.delete(ctx, t, service.Objects()...)
	}
	f.delete(ctx, t, name)
	f.waitNoServices(ctx, t, programmed...)
}

// testKubectl applies manifests as a user would: the API server chooses
// addresses and node port.
func testKubectl(ctx context.Context, t *testing.T, f *fixture, near, far *testbed.Pod) {
	manifest := func(port int, endpoints ...string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata:
  name: shop
  namespace: default
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ports:
    - name: http
      port: %d
      targetPort: 8080
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: shop-v4
  namespace: default
  labels:
    kubernetes.io/service-name: shop
addressType: IPv4
ports:
  - name: http
    port: 8080
endpoints: [%s]
`, port, strings.Join(endpoints, ", "))
	}
	endpoint := func(pod *testbed.Pod) string {
		return fmt.Sprintf("{addresses: [%q], nodeName: %s, conditions: {ready: true}}", pod.IPv4, pod.NodeName)
	}
	only := func(pod *testbed.Pod) testbed.Endpoint {
		return testbed.Endpoint{IPv4: pod.IPv4, NodeName: pod.NodeName, PodName: pod.Name}
	}
	kubectl := func(stdin string, args ...string) {
		t.Helper()
		if _, err := f.plane.Kubectl(ctx, strings.NewReader(stdin), args...); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(manifest(8000, endpoint(near)), "apply", "-f", "-")
	shop := f.asWritten(ctx, t, "shop")
	shop.Endpoints = []testbed.Endpoint{only(near)}
	f.waitServices(ctx, t, shop)
	client := &f.Nodes[2].Pods[1].Host
	front := shop.ClusterIPs[slices.IndexFunc(shop.ClusterIPs, netip.Addr.Is4)]
	f.expectAnswers(t, client, probe.TCP, netip.AddrPortFrom(front, 8000), near.Name)
	f.expectAnswers(t, f.Client, probe.TCP, netip.AddrPortFrom(f.Nodes[0].IPv4, shop.Ports[0].NodePort), near.Name)

	kubectl(manifest(8001, endpoint(near), endpoint(far)), "apply", "-f", "-")
	shop.Ports[0].Port = 8001
	shop.Endpoints = []testbed.Endpoint{only(near), only(far)}
	f.waitServices(ctx, t, shop)
	f.expectAnswers(t, client, probe.TCP, netip.AddrPortFrom(front, 8001), near.Name, far.Name)

	kubectl("", "patch", "endpointslice", "shop-v4", "--type=json",
		`--patch=[{"op": "replace", "path": "/endpoints/0/conditions/ready", "value": false}]`)
	shop.Endpoints = []testbed.Endpoint{only(far)}
	f.waitServices(ctx, t, shop)
	f.expectAnswers(t, client, probe.TCP, netip.AddrPortFrom(front, 8001), far.Name)

	kubectl("", "delete", "service/shop", "endpointslice/shop-v4", "--wait=false")
	f.waitNoServices(ctx, t, shop)
}

// asWritten is a service with what the API server chose for it.
func (f *fixture) asWritten(ctx context.Context, t *testing.T, name string) testbed.Service {
	t.Helper()
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	object, err := client.CoreV1().Services(testbed.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service := testbed.Service{Name: name}
	for _, text := range object.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		service.ClusterIPs = append(service.ClusterIPs, addr)
	}
	for _, port := range object.Spec.Ports {
		service.Ports = append(service.Ports, testbed.Port{
			Name: port.Name, Protocol: port.Protocol, Port: uint16(port.Port),
			Target: uint16(port.TargetPort.IntVal), NodePort: uint16(port.NodePort),
		})
	}
	return service
}

// testNodeAddress gives a Node one more address and takes it away again: node
// ports appear there and disappear.
func testNodeAddress(ctx context.Context, t *testing.T, f *fixture, near *testbed.Pod) {
	service := newService("node-addresses", 26, true, near.Endpoint())
	f.apply(ctx, t, service.Objects()...)
	f.waitServices(ctx, t, service)
	f.delete(ctx, t, objectsOf(service)...)
	f.waitNoServices(ctx, t, service)

	// A node that has no agent comes and goes without harm to the others.
	phantom := f.Nodes[2].Object()
	phantom.Name, phantom.UID = "phantom", ""
	phantom.Spec.PodCIDR, phantom.Spec.PodCIDRs = "10.244.99.0/24", []string{"10.244.99.0/24"}
	phantom.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "172.30.0.99"}}
	before := contents(ctx, t, f.agents[0])
	f.apply(ctx, t, phantom)
	waitContents(ctx, t, f.agents[0], func(now []string) bool { return difference(before, now) != "" })
	f.delete(ctx, t, phantom)
	waitContents(ctx, t, f.agents[0], func(now []string) bool { return difference(before, now) == "" })
}

func objectsOf(services ...testbed.Service) []runtime.Object {
	var objects []runtime.Object
	for _, service := range services {
		objects = append(objects, service.Objects()...)
	}
	return objects
}
