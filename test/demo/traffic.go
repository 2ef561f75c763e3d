// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// protocols are the transport protocols as probes and Kubernetes call them.
var protocols = []struct {
	network string
	name    corev1.Protocol
}{{probe.TCP, corev1.ProtocolTCP}, {probe.UDP, corev1.ProtocolUDP}}

var families = []int{4, 6}

// service is a dual-stack service on port 80, TCP and UDP, with addresses of
// its own.
func (d *demo) service(name string, endpoints ...testbed.Endpoint) testbed.Service {
	d.services++
	service := testbed.Service{Name: name, Endpoints: endpoints}
	for _, family := range families {
		service.ClusterIPs = append(service.ClusterIPs, testbed.ServiceIP(family, d.services))
	}
	for _, protocol := range protocols {
		service.Ports = append(service.Ports, testbed.Port{
			Name: "echo-" + protocol.network, Protocol: protocol.name, Port: 80, Target: echoPort,
		})
	}
	return service
}

// fromOutside gives a service a node port, an external IP and a load balancer
// address of each family.
func (d *demo) fromOutside(service testbed.Service) testbed.Service {
	for i := range service.Ports {
		service.Ports[i].NodePort = uint16(30000 + d.services)
	}
	for _, family := range families {
		service.ExternalIPs = append(service.ExternalIPs, testbed.ExternalIP(family, d.services))
		service.LoadBalancerIPs = append(service.LoadBalancerIPs, testbed.ExternalIP(family, 100+d.services))
	}
	return service
}

// at is port 80 of a service's cluster IP.
func at(service testbed.Service, family int) netip.AddrPort {
	return netip.AddrPortFrom(service.ClusterIPs[family/6], 80)
}

// everyWay calls fn for TCP and UDP, IPv4 and IPv6.
func everyWay(fn func(network string, family int, label string)) {
	for _, protocol := range protocols {
		for _, family := range families {
			fn(protocol.network, family, fmt.Sprintf("%s IPv%d", protocol.name, family))
		}
	}
}

// clusterIPs calls backends on the same and on another node.
func (d *demo) clusterIPs() {
	d.step("Cluster IPs: from a pod to pods on its node and on another; the source address is kept")
	pods := d.Pods()
	near, far := d.service("near", pods[1].Endpoint()), d.service("far", pods[2].Endpoint())
	if !d.serve(near, far) {
		return
	}
	for _, service := range []testbed.Service{near, far} {
		server := service.Endpoints[0].PodName
		everyWay(func(network string, family int, label string) {
			d.call(fmt.Sprintf("%s -> %s, %s", pods[0].Name, service.Name, label), &pods[0].Host,
				probe.Dial{Network: network, Target: at(service, family)}, server, pods[0].IP(family).String())
		})
	}
}

// balancing calls a service with a backend on each node many times.
func (d *demo) balancing() {
	d.step("Several backends share the connections")
	pods := d.Pods()
	servers := []*testbed.Pod{pods[1], pods[2], pods[4]}
	service := d.service("spread", servers[0].Endpoint(), servers[1].Endpoint(), servers[2].Endpoint())
	if !d.serve(service) {
		return
	}
	prober, err := d.Probe(&pods[0].Host)
	if err != nil {
		d.problem("start prober", err)
		return
	}
	everyWay(func(network string, family int, label string) {
		what := "120 calls, " + label
		answers, err := prober.Many(120, probe.Dial{Network: network, Target: at(service, family)}, probe.Exchange{})
		if err != nil {
			d.problem(what, err)
			return
		}
		counts := map[string]int{}
		for _, answer := range answers {
			counts[answer.Server+string(answer.Failure)]++
		}
		var parts []string
		ok := len(counts) == len(servers)
		for name, count := range counts {
			parts = append(parts, fmt.Sprintf("%s %d", name, count))
			// Five standard deviations from a third.
			ok = ok && count >= 14 && count <= 66
		}
		slices.Sort(parts)
		d.check(what, "about 40 for each of three pods", strings.Join(parts, ", "), ok)
	})
}

// outside calls services from the external client.
func (d *demo) outside() {
	d.step("From outside: node port, external IP, load balancer address")
	node, pods := d.Nodes[0], d.Pods()
	d.note("They enter by %s. A backend there sees the client; one on another node sees %s, which answers come back by.", node.Name, node.Name)
	near, far := d.fromOutside(d.service("public-near", pods[1].Endpoint())), d.fromOutside(d.service("public-far", pods[2].Endpoint()))
	if !d.serve(near, far) {
		return
	}
	for _, service := range []testbed.Service{near, far} {
		source := d.Client
		if service.Name == far.Name {
			source = &node.Host
		}
		everyWay(func(network string, family int, label string) {
			for _, frontend := range []struct {
				name   string
				target netip.AddrPort
			}{
				{"node port", netip.AddrPortFrom(node.IP(family), service.Ports[0].NodePort)},
				{"external IP", netip.AddrPortFrom(service.ExternalIPs[family/6], 80)},
				{"load balancer", netip.AddrPortFrom(service.LoadBalancerIPs[family/6], 80)},
			} {
				d.call(fmt.Sprintf("client -> %s, %s, %s", service.Name, frontend.name, label), d.Client,
					probe.Dial{Network: network, Target: frontend.target}, service.Endpoints[0].PodName, source.IP(family).String())
			}
		})
	}
}

// specialPlaces has clients and backends on the nodes themselves, and a pod
// that calls itself.
func (d *demo) specialPlaces() {
	d.step("A pod that calls itself; backends and clients on the nodes themselves")
	pods, node, other := d.Pods(), d.Nodes[0], d.Nodes[1]
	self, host, pod := d.service("self", pods[0].Endpoint()), d.service("on-host", other.Endpoint()), d.service("for-host", pods[2].Endpoint())
	if !d.serve(self, host, pod) {
		return
	}
	everyWay(func(network string, family int, label string) {
		// The node's address stands in, so that the answer comes back by the
		// translation.
		d.call(fmt.Sprintf("%s -> itself, %s", pods[0].Name, label), &pods[0].Host,
			probe.Dial{Network: network, Target: at(self, family)}, pods[0].Name, node.IP(family).String())
	})
	everyWay(func(network string, family int, label string) {
		// What pods send to a node's own address is masqueraded here, as by
		// CNI plugins.
		d.call(fmt.Sprintf("%s -> backend on %s, %s", pods[0].Name, other.Name, label), &pods[0].Host,
			probe.Dial{Network: network, Target: at(host, family)}, other.Name, node.IP(family).String())
	})
	everyWay(func(network string, family int, label string) {
		d.call(fmt.Sprintf("%s itself -> %s, %s", node.Name, pods[2].Name, label), &node.Host,
			probe.Dial{Network: network, Target: at(pod, family)}, pods[2].Name, node.IP(family).String())
	})
}

// refusal calls a service without backends.
func (d *demo) refusal() {
	d.step("A service without backends refuses at once")
	service := d.fromOutside(d.service("empty"))
	if !d.serve(service) {
		return
	}
	const atOnce = 700 * time.Millisecond
	refused := func(what string, from *testbed.Host, dial probe.Dial) {
		answer, err := d.Ask(from, dial)
		if err != nil {
			d.problem(what, err)
			return
		}
		seen := fmt.Sprintf("%s after %v", answer.Failure, round(answer.Took))
		if answer.Failure == probe.None {
			seen = "answered by " + answer.Server
		}
		d.check(what, "refused at once", seen, answer.Failure == probe.Refused && answer.Took < atOnce)
	}
	everyWay(func(network string, family int, label string) {
		refused("pod-1-1 -> cluster IP, "+label, &d.Pods()[0].Host, probe.Dial{Network: network, Target: at(service, family)})
	})
	everyWay(func(network string, family int, label string) {
		refused("client -> node port, "+label, d.Client, probe.Dial{
			Network: network, Target: netip.AddrPortFrom(d.Nodes[0].IP(family), service.Ports[0].NodePort)})
	})
}
