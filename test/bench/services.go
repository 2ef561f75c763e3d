// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net/netip"

	"github.com/millrace-project/millrace/test/testbed"
)

// smallServices is the number of services of the small clusters.
const smallServices = 10

// fillerBackends is how many backends each service has that no one dials.
const fillerBackends = 5

// Numbers of services; they give their cluster IPs. The first ones are left to
// the service "kubernetes".
const (
	sameNodeNumber  = 10
	otherNodeNumber = 11
	churnNumber     = 100
	fillerNumber    = 256
)

// Node ports of the services that are dialled.
const (
	sameNodePort  = 30010
	otherNodePort = 30011
)

// dialled returns the services that clients dial: one with its backend on the
// first node, one with its backend on the second.
func dialled(cluster *testbed.Cluster) []testbed.Service {
	return []testbed.Service{
		service("same-node", sameNodeNumber, sameNodePort, cluster.Nodes[0].Pods[1].Endpoint()),
		service("other-node", otherNodeNumber, otherNodePort, cluster.Nodes[1].Pods[0].Endpoint()),
	}
}

// fillers returns the services that bring a cluster up to count services. They
// have the one family that clients dial.
func fillers(cluster *testbed.Cluster, family, count int) []testbed.Service {
	services := make([]testbed.Service, count-len(dialled(cluster)))
	for i := range services {
		filler := service(fmt.Sprintf("filler-%05d", i), fillerNumber+i, 0, fillerEndpoints(cluster, i)...)
		filler.ClusterIPs = []netip.Addr{testbed.ServiceIP(family, fillerNumber+i)}
		services[i] = filler
	}
	return services
}

// fillerEndpoints are addresses in the nodes' pod ranges that nobody has.
func fillerEndpoints(cluster *testbed.Cluster, n int) []testbed.Endpoint {
	endpoints := make([]testbed.Endpoint, fillerBackends)
	for i := range endpoints {
		node := cluster.Nodes[(n+i)%len(cluster.Nodes)]
		number := 100 + (n*fillerBackends+i)%150
		v4, v6 := node.PodCIDRv4.Addr().As4(), node.PodCIDRv6.Addr().As16()
		v4[3], v6[15] = byte(number), byte(number)
		endpoints[i] = testbed.Endpoint{IPv4: netip.AddrFrom4(v4), IPv6: netip.AddrFrom16(v6), NodeName: node.Name}
	}
	return endpoints
}

// service returns a dual-stack service with a TCP port 80.
func service(name string, n int, nodePort uint16, endpoints ...testbed.Endpoint) testbed.Service {
	return testbed.Service{
		Name:       name,
		ClusterIPs: []netip.Addr{testbed.ServiceIP(4, n), testbed.ServiceIP(6, n)},
		Ports:      []testbed.Port{{Port: 80, Target: serverPort, NodePort: nodePort}},
		Endpoints:  endpoints,
	}
}
