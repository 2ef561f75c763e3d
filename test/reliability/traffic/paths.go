// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// MinPodsPerNode is how many pods each of at least two nodes must have: two
// clients and two servers.
const MinPodsPerNode = 4

// Names of the services under load.
const (
	// Main has backends on both nodes and is called by its cluster IPs.
	Main = "load-main"
	// Near and Far are called from outside by the first node's port; their
	// backends are on the first and on the second node.
	Near = "load-near"
	Far  = "load-far"
	// Self has one backend, which calls it.
	Self = "load-self"
	// Visits has backends that may go at any time: no socket of its clients
	// stays open.
	Visits = "load-visits"
)

// firstNumber is the number of the first service under load; the barrier's is
// the last of count. API servers have low ones themselves.
const (
	firstNumber = 20
	count       = 6
)

// servicePort is the port of cluster IPs.
const servicePort = 80

// NewService is a dual-stack service for TCP and UDP. Its number gives it
// addresses and a node port, and a target port of its own: an answer by a
// backend of another service is known by its port.
func NewService(name string, number int, endpoints ...testbed.Endpoint) testbed.Service {
	service := testbed.Service{
		Name: name, Endpoints: endpoints,
		ClusterIPs: []netip.Addr{testbed.ServiceIP(4, number), testbed.ServiceIP(6, number)},
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		service.Ports = append(service.Ports, testbed.Port{
			Name: strings.ToLower(string(protocol)), Protocol: protocol, Port: servicePort,
			Target: targetPort(number), NodePort: uint16(30000 + number),
		})
	}
	return service
}

func targetPort(number int) uint16 { return uint16(8000 + number) }

// NodePort is the address of a service's port on a node.
func NodePort(service testbed.Service, node *testbed.Node, family int) netip.AddrPort {
	return netip.AddrPortFrom(node.IP(family), service.Ports[0].NodePort)
}

// services are those under load, with all the backends that they may have.
func services(cluster *testbed.Cluster) []testbed.Service {
	var near, far []testbed.Endpoint
	for _, pod := range cluster.Nodes[0].Pods[2:MinPodsPerNode] {
		near = append(near, pod.Endpoint())
	}
	for _, pod := range cluster.Nodes[1].Pods[2:MinPodsPerNode] {
		far = append(far, pod.Endpoint())
	}
	return []testbed.Service{
		NewService(Main, firstNumber+0, append(append([]testbed.Endpoint{}, near...), far...)...),
		NewService(Near, firstNumber+1, near...),
		NewService(Far, firstNumber+2, far...),
		NewService(Self, firstNumber+3, near[0]),
		NewService(Visits, firstNumber+4, near[1], far[0]),
	}
}

// path is a way to a service. No socket program sees the client if bypass is
// set.
type path struct {
	name    string
	host    *testbed.Host
	bypass  bool
	service string
	target  func(family int) netip.AddrPort
	// visits leaves no socket open.
	visits bool
}

func paths(cluster *testbed.Cluster, services map[string]testbed.Service) []path {
	clusterIP := func(service string) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort {
			return netip.AddrPortFrom(services[service].ClusterIPs[family/6], servicePort)
		}
	}
	nodePort := func(service string) func(int) netip.AddrPort {
		return func(family int) netip.AddrPort { return NodePort(services[service], cluster.Nodes[0], family) }
	}
	first, second := cluster.Nodes[0], cluster.Nodes[1]
	self := &first.Pods[2].Host
	return []path{
		{name: "pod, sockets", host: &first.Pods[0].Host, service: Main, target: clusterIP(Main)},
		{name: "pod, packets", host: &first.Pods[1].Host, bypass: true, service: Main, target: clusterIP(Main)},
		{name: "second node's pod, sockets", host: &second.Pods[0].Host, service: Main, target: clusterIP(Main)},
		{name: "second node's pod, packets", host: &second.Pods[1].Host, bypass: true, service: Main, target: clusterIP(Main)},
		{name: "node", host: &first.Host, service: Main, target: clusterIP(Main)},
		{name: "outside, backend near", host: cluster.Client, bypass: true, service: Near, target: nodePort(Near)},
		{name: "outside, backend far", host: cluster.Client, bypass: true, service: Far, target: nodePort(Far)},
		{name: "itself, sockets", host: self, service: Self, target: clusterIP(Self)},
		{name: "itself, packets", host: self, bypass: true, service: Self, target: clusterIP(Self)},
		{name: "visits, sockets", host: &second.Pods[0].Host, service: Visits, target: clusterIP(Visits), visits: true},
		{name: "visits, packets", host: &second.Pods[1].Host, bypass: true, service: Visits, target: clusterIP(Visits), visits: true},
	}
}

const (
	// timeout of a request. A lost segment of TCP is repeated after a fifth
	// of a second, a lost SYN after one.
	timeout = 4 * time.Second
	// socketsPerStream share the requests of a stream.
	socketsPerStream = 2
	// idleInterval is how long rarely used sockets rest.
	idleInterval = 7 * time.Second
)

// streams are the path's, all with the same interval.
func (p path) streams(interval time.Duration) []probe.Stream {
	var streams []probe.Stream
	for _, family := range []int{4, 6} {
		for _, network := range []string{probe.TCP, probe.UDP} {
			add := func(kind string, change func(*probe.Stream)) {
				stream := probe.Stream{
					Name:    fmt.Sprintf("%s, %s %s, IPv%d", p.name, kind, strings.ToUpper(network), family),
					Service: p.service, Sockets: socketsPerStream, Interval: interval * socketsPerStream,
					Dial: probe.Dial{Network: network, Target: p.target(family), Timeout: timeout},
				}
				change(&stream)
				streams = append(streams, stream)
			}
			add("new", func(s *probe.Stream) { s.Fresh = true })
			if p.visits {
				continue
			}
			// A connected UDP socket whose destination was translated when it
			// was connected is past help.
			add("open", func(s *probe.Stream) { s.Stays = !p.bypass })
			add("idle", func(s *probe.Stream) { s.Stays, s.Sockets, s.Interval = !p.bypass, 1, idleInterval })
			if network == probe.UDP {
				add("unconnected", func(s *probe.Stream) {
					s.To, s.Dial.Target, s.Dial.IPv6 = s.Dial.Target, netip.AddrPort{}, family == 6
				})
			}
		}
	}
	return streams
}
