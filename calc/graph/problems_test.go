// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/calc/model"
)

// TestProblems states, for everything that can be wrong, what is told and
// what of the objects stays in use.
func TestProblems(t *testing.T) {
	t.Parallel()
	web := func(edit func(*model.ServicePort)) func(*model.Service) {
		return func(s *model.Service) { edit(&s.Ports[0]) }
	}
	second := func(port model.ServicePort) func(*model.Service) {
		return func(s *model.Service) { s.Ports = append(s.Ports, port) }
	}
	badNode := func(edit func(*model.Node)) *model.Node {
		n := node("n1", "z1")
		edit(n)
		return n
	}
	badSlice := func(edit func(*model.EndpointSlice)) *model.EndpointSlice {
		s := endpointSlice("x-1", "x", endpoint("10.1.0.1", ""))
		edit(s)
		return s
	}
	const (
		cluster = "frontend cluster 6 10.96.0.1:80 = ns/x:web"
		backend = `backend ns/x:web 6 10.1.0.1:8080 node "" zone "" ready=true serving=true terminating=false`
	)
	for _, test := range []struct {
		name     string
		objects  []model.Object
		problems []string
		lines    []string
	}{
		{"port too great", []model.Object{service("x", second(model.ServicePort{Name: "b", Port: 65536}))},
			[]string{"Service ns/x: spec.ports[1].port: 65536 is not a port (1 to 65535): the port is not served"},
			[]string{cluster}},
		{"port zero", []model.Object{service("x", second(model.ServicePort{Name: "b"}))},
			[]string{"Service ns/x: spec.ports[1].port: 0 is not a port (1 to 65535): the port is not served"},
			[]string{cluster}},
		{"node port out of range", []model.Object{service("x", nodePort(70000))},
			[]string{"Service ns/x: spec.ports[0].nodePort: 70000 is not a port (1 to 65535): not served at the nodes"},
			[]string{cluster}},
		{"SCTP", []model.Object{service("x", second(model.ServicePort{Name: "b", Protocol: "SCTP", Port: 81}))},
			[]string{"Service ns/x: spec.ports[1].protocol: SCTP is not supported: the port is not served"},
			[]string{cluster}},
		{"unknown protocol", []model.Object{service("x", web(func(p *model.ServicePort) { p.Protocol = "tcp" }))},
			[]string{`Service ns/x: spec.ports[0].protocol: "tcp" is not a protocol: the port is not served`}, nil},
		{"duplicate port name", []model.Object{service("x", second(model.ServicePort{Name: "web", Port: 81}))},
			[]string{`Service ns/x: spec.ports[1].name: "web" is the name of spec.ports[0] too: the port is not served`},
			[]string{cluster}},
		{"duplicate port", []model.Object{service("x", second(model.ServicePort{Name: "b", Port: 80}))},
			[]string{"Service ns/x: spec.ports[1].port: 80/TCP is that of spec.ports[0] too: the port is not served"},
			[]string{cluster}},
		{"same port, other protocol", []model.Object{service("x", second(model.ServicePort{Name: "web", Protocol: "UDP", Port: 80}))},
			nil, []string{"frontend cluster 17 10.96.0.1:80 = ns/x:web", cluster}},
		{"duplicate node port within a service", []model.Object{service("x", nodePort(30000),
			second(model.ServicePort{Name: "b", Port: 81, NodePort: 30000}))},
			[]string{"Service ns/x: spec.ports[1].nodePort: 30000 is that of spec.ports[0] too: not served at the nodes"},
			[]string{"frontend cluster 6 10.96.0.1:81 = ns/x:b", cluster, "frontend node 6 *:30000 = ns/x:web"}},
		{"duplicate node port", []model.Object{service("x", created(1), nodePort(30000)),
			service("y", created(2), clusterIPs("10.96.0.2"), nodePort(30000))},
			[]string{"Service ns/y: spec.ports[0].nodePort: 30000/TCP is held by service ns/x, which is older: not served at the nodes until that one gives it up"},
			[]string{cluster, "frontend cluster 6 10.96.0.2:80 = ns/y:web", "frontend node 6 *:30000 = ns/x:web"}},
		{"no ports", []model.Object{service("x", func(s *model.Service) { s.Ports = nil })},
			[]string{"Service ns/x: spec.ports: no port is given: the service is not served"}, nil},
		{"target port out of range", []model.Object{service("x", web(func(p *model.ServicePort) { p.TargetPort = 70000 }))},
			[]string{"Service ns/x: spec.ports[0].targetPort: 70000 is not a port (1 to 65535): ignored; backends are reached at the ports of their slices"},
			[]string{cluster}},
		{"unsupported fields", []model.Object{service("x", func(s *model.Service) {
			s.Unsupported = model.Unsupported{SourceRanges: true, ExternalTrafficPolicy: "Local",
				InternalTrafficPolicy: "Local", TrafficDistribution: "PreferClose", TopologyMode: "Auto"}
		})},
			[]string{
				"Service ns/x: metadata.annotations[service.kubernetes.io/topology-mode]: Auto is not supported yet: ignored; backends of all zones are used",
				"Service ns/x: spec.externalTrafficPolicy: Local is not supported yet: ignored; backends of all nodes are used, and those of other nodes do not see the client's address",
				"Service ns/x: spec.internalTrafficPolicy: Local is not supported yet: ignored; backends of all nodes are used",
				"Service ns/x: spec.loadBalancerSourceRanges: a list of sources is not supported yet: ignored; every client gets in",
				"Service ns/x: spec.trafficDistribution: PreferClose is not supported yet: ignored; backends of all zones are used",
			}, []string{cluster}},
		{"session affinity of clients", []model.Object{service("x", clientIP(nil))}, nil, []string{cluster + " affinity 10800s"}},
		{"session affinity with a timeout", []model.Object{service("x", clientIP(seconds(1))), service("y", clusterIPs("10.96.0.2"), clientIP(seconds(86400)))},
			nil, []string{cluster + " affinity 1s", "frontend cluster 6 10.96.0.2:80 = ns/y:web affinity 86400s"}},
		{"session affinity with no time", []model.Object{service("x", clientIP(seconds(0)))},
			[]string{"Service ns/x: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not a number of seconds that a client can keep its backend for (1 to 86400): treated as 10800"},
			[]string{cluster + " affinity 10800s"}},
		{"session affinity of more than a day", []model.Object{service("x", clientIP(seconds(86401)))},
			[]string{"Service ns/x: spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not a number of seconds that a client can keep its backend for (1 to 86400): treated as 10800"},
			[]string{cluster + " affinity 10800s"}},
		{"unknown session affinity", []model.Object{service("x", func(s *model.Service) { s.SessionAffinity = "Cookie" })},
			[]string{`Service ns/x: spec.sessionAffinity: "Cookie" is not a session affinity (None, ClientIP): treated as None`}, []string{cluster}},
		{"a timeout without session affinity", []model.Object{service("x", func(s *model.Service) { s.SessionAffinity, s.AffinityTimeout = "None", seconds(0) })},
			nil, []string{cluster}},
		{"fields as the API server fills them in", []model.Object{service("x", func(s *model.Service) {
			s.Unsupported = model.Unsupported{ExternalTrafficPolicy: "Cluster",
				InternalTrafficPolicy: "Cluster", TopologyMode: "Disabled"}
		})}, nil, []string{cluster}},
		{"unknown type", []model.Object{service("x", func(s *model.Service) { s.Type = "Magic" })},
			[]string{`Service ns/x: spec.type: "Magic" is not a type of service: treated as ClusterIP`}, []string{cluster}},
		{"no cluster IP", []model.Object{service("x", clusterIPs())},
			[]string{"Service ns/x: spec.clusterIP: no cluster IP is given: the service is not served"}, nil},
		{"cluster IP unparsable", []model.Object{service("x", clusterIPs("10.96.0.1", "10.96.0"))},
			[]string{`Service ns/x: spec.clusterIPs[1]: "10.96.0" is not an IP address: not served`}, []string{cluster}},
		{"single cluster IP unparsable", []model.Object{service("x", clusterIPs(),
			func(s *model.Service) { s.ClusterIP = "what" }, externalIPs("192.0.2.1", "2001:db8::1"))},
			[]string{`Service ns/x: spec.clusterIP: "what" is not an IP address: not served`},
			[]string{"frontend external 6 192.0.2.1:80 = ns/x:web", "frontend external 6 2001:db8::1:80 = ns/x:web"}},
		{"single cluster IP", []model.Object{service("x", clusterIPs(), func(s *model.Service) { s.ClusterIP = "10.96.0.1" })},
			nil, []string{cluster}},
		{"cluster IP of the wrong family", []model.Object{service("x", clusterIPs("10.96.0.1", "10.96.0.2"),
			func(s *model.Service) { s.IPFamilies = []string{"IPv4", "IPv6"} })},
			[]string{`Service ns/x: spec.clusterIPs[1]: 10.96.0.2 is an IPv4 address where spec.ipFamilies[1] says "IPv6": not served`},
			[]string{cluster}},
		{"unknown family", []model.Object{service("x", func(s *model.Service) { s.IPFamilies = []string{"IPv4", "IPv5"} })},
			[]string{`Service ns/x: spec.ipFamilies[1]: "IPv5" is not an IP family: ignored`}, []string{cluster}},
		{"second cluster IP of a family", []model.Object{service("x", clusterIPs("10.96.0.1", "10.96.0.2"))},
			[]string{"Service ns/x: spec.clusterIPs[1]: 10.96.0.2 is a second IPv4 cluster IP: not served"}, []string{cluster}},
		{"cluster IP claimed twice", []model.Object{service("x", created(1)), service("w", created(2), externalIPs("192.0.2.1"))},
			[]string{"Service ns/w: spec.clusterIPs[0]: 10.96.0.1 is the cluster IP of service ns/x, which is older: not served until that one gives it up"},
			[]string{cluster, "frontend external 6 192.0.2.1:80 = ns/w:web"}},
		{"node port claimed by a service without a creation time", []model.Object{service("y", created(0), nodePort(30000)),
			service("x", created(2), clusterIPs("10.96.0.2"), nodePort(30000))},
			[]string{"Service ns/x: spec.ports[0].nodePort: 30000/TCP is held by service ns/y, which comes first as it has no creation time: not served at the nodes until that one gives it up"},
			[]string{"frontend cluster 6 10.96.0.1:80 = ns/y:web", "frontend cluster 6 10.96.0.2:80 = ns/x:web", "frontend node 6 *:30000 = ns/y:web"}},
		{"external IP unparsable", []model.Object{service("x", externalIPs("nope", "192.0.2.1"))},
			[]string{`Service ns/x: spec.externalIPs[0]: "nope" is not an IP address: not served`},
			[]string{cluster, "frontend external 6 192.0.2.1:80 = ns/x:web"}},
		{"external IP of the wrong family", []model.Object{service("x", externalIPs("2001:db8::1"))},
			[]string{"Service ns/x: spec.externalIPs[0]: 2001:db8::1 is an IPv6 address, a family in which the service has no cluster IP: not served"},
			[]string{cluster}},
		{"external IP that nobody can dial", []model.Object{service("x", externalIPs("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"))},
			[]string{
				"Service ns/x: spec.externalIPs[0]: 127.0.0.1 is a loopback address: not served",
				"Service ns/x: spec.externalIPs[1]: 0.0.0.0 is the unspecified address: not served",
				"Service ns/x: spec.externalIPs[2]: 224.0.0.1 is a multicast address: not served",
				"Service ns/x: spec.externalIPs[3]: 255.255.255.255 is the broadcast address: not served",
			}, []string{cluster}},
		{"external IP claimed twice, as old", []model.Object{service("x", externalIPs("192.0.2.1")),
			service("y", clusterIPs("10.96.0.2"), externalIPs("192.0.2.1"), second(model.ServicePort{Name: "b", Port: 81}))},
			[]string{"Service ns/y: spec.externalIPs[0]: 192.0.2.1 port 80/TCP is held by service ns/x, which comes first by namespace and name: not served until that one gives it up"},
			[]string{cluster, "frontend cluster 6 10.96.0.2:80 = ns/y:web", "frontend cluster 6 10.96.0.2:81 = ns/y:b",
				"frontend external 6 192.0.2.1:80 = ns/x:web", "frontend external 6 192.0.2.1:81 = ns/y:b"}},
		{"external IP is another's cluster IP", []model.Object{service("x", created(9)),
			service("y", created(1), clusterIPs("10.96.0.2"), externalIPs("10.96.0.1"))},
			[]string{"Service ns/y: spec.externalIPs[0]: 10.96.0.1 is the cluster IP of service ns/x, which has port 80/TCP: not served until that one gives it up"},
			[]string{cluster, "frontend cluster 6 10.96.0.2:80 = ns/y:web"}},
		{"load balancer IP of the wrong family", []model.Object{service("x", ingress("2001:db8::1", "192.0.2.1"))},
			[]string{"Service ns/x: status.loadBalancer.ingress[0].ip: 2001:db8::1 is an IPv6 address, a family in which the service has no cluster IP: not served"},
			[]string{cluster, "frontend external 6 192.0.2.1:80 = ns/x:web"}},
		{"load balancer IP held as external IP", []model.Object{service("x", created(1), externalIPs("192.0.2.1")),
			service("y", created(2), clusterIPs("10.96.0.2"), ingress("192.0.2.1"))},
			[]string{"Service ns/y: status.loadBalancer.ingress[0].ip: 192.0.2.1 port 80/TCP is held by service ns/x, which is older: not served until that one gives it up"},
			[]string{cluster, "frontend cluster 6 10.96.0.2:80 = ns/y:web", "frontend external 6 192.0.2.1:80 = ns/x:web"}},
		{"load balancer modes", []model.Object{service("x", func(s *model.Service) {
			s.Ingress = []model.LoadBalancerIngress{{IP: "192.0.2.1", IPMode: "Proxy"}, {IP: "192.0.2.2", IPMode: "VIP"},
				{}, {IP: "192.0.2.3", IPMode: "Odd"}}
		})},
			[]string{`Service ns/x: status.loadBalancer.ingress[3].ipMode: "Odd" is not a mode: the address is not served`},
			[]string{cluster, "frontend external 6 192.0.2.2:80 = ns/x:web"}},
		{"same address external and load balanced", []model.Object{service("x", externalIPs("192.0.2.1", "192.0.2.1"), ingress("192.0.2.1"))},
			nil, []string{cluster, "frontend external 6 192.0.2.1:80 = ns/x:web"}},
		{"left to another proxy", []model.Object{service("x", label(model.LabelServiceProxyName, "")), endpointSlice("x-1", "x", endpoint("10.1.0.1", ""))},
			nil, nil},
		{"slice without a service", []model.Object{badSlice(func(*model.EndpointSlice) {})},
			[]string{"EndpointSlice ns/x-1: metadata.labels[kubernetes.io/service-name]: there is no service ns/x: the slice is not used until there is"}, nil},
		{"slice of a headless service", []model.Object{service("x", clusterIPs("None")), badSlice(func(*model.EndpointSlice) {})}, nil, nil},
		{"slice without the label", []model.Object{service("x"), badSlice(func(s *model.EndpointSlice) { s.Labels = nil })},
			[]string{"EndpointSlice ns/x-1: metadata.labels[kubernetes.io/service-name]: the label is missing: the slice is not used"},
			[]string{cluster}},
		{"slice of names", []model.Object{service("x"), badSlice(func(s *model.EndpointSlice) { s.AddressType = "FQDN" })}, nil, []string{cluster}},
		{"slice of an unknown type", []model.Object{service("x"), badSlice(func(s *model.EndpointSlice) { s.AddressType = "" })},
			[]string{`EndpointSlice ns/x-1: addressType: "" is not a type of address: the slice is not used`}, []string{cluster}},
		{"endpoint addresses", []model.Object{service("x"), badSlice(func(s *model.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, endpoint("fd01::1", ""),
				model.Endpoint{Addresses: []string{"10.1.0.300", "10.1.0.1"}}, model.Endpoint{})
		})},
			[]string{
				"EndpointSlice ns/x-1: endpoints[1].addresses[0]: fd01::1 is an IPv6 address in a slice of IPv4: not used",
				`EndpointSlice ns/x-1: endpoints[2].addresses[0]: "10.1.0.300" is not an IP address: not used`,
				"EndpointSlice ns/x-1: endpoints[3].addresses: no address is given: the endpoint is not used",
			}, []string{backend, cluster}},
		{"unknown nodes", []model.Object{service("x"), node("n1", "z1"), badSlice(func(s *model.EndpointSlice) {
			s.Endpoints = []model.Endpoint{endpoint("10.1.0.1", ""), endpoint("10.1.0.2", "n2"), endpoint("10.1.0.3", "n1"),
				endpoint("10.1.0.4", "n2"), endpoint("10.1.0.5", "n3")}
		})},
			[]string{
				`EndpointSlice ns/x-1: endpoints[1].nodeName: there is no node "n2": used, but as on no node of the cluster`,
				`EndpointSlice ns/x-1: endpoints[4].nodeName: there is no node "n3": used, but as on no node of the cluster`,
			}, []string{
				cluster, backend, `node n1 zone "z1"`,
				`backend ns/x:web 6 10.1.0.2:8080 node "n2" zone "" ready=true serving=true terminating=false`,
				`backend ns/x:web 6 10.1.0.3:8080 node "n1" zone "z1" ready=true serving=true terminating=false`,
				`backend ns/x:web 6 10.1.0.4:8080 node "n2" zone "" ready=true serving=true terminating=false`,
				`backend ns/x:web 6 10.1.0.5:8080 node "n3" zone "" ready=true serving=true terminating=false`,
			}},
		{"target ports", []model.Object{service("x"), badSlice(func(s *model.EndpointSlice) {
			s.Ports = append(s.Ports, model.EndpointPort{Name: "big", Port: ptr[int32](65536)},
				model.EndpointPort{Name: "odd", Protocol: "ODD", Port: ptr[int32](1)},
				model.EndpointPort{Name: "web", Port: ptr[int32](1)},
				model.EndpointPort{Name: "none"}, model.EndpointPort{Name: "sctp", Protocol: "SCTP", Port: ptr[int32](1)})
		})},
			[]string{
				"EndpointSlice ns/x-1: ports[1].port: 65536 is not a port (1 to 65535): the port is not used",
				`EndpointSlice ns/x-1: ports[2].protocol: "ODD" is not a protocol: the port is not used`,
				`EndpointSlice ns/x-1: ports[3].name: "web" is the name of an earlier port too: the port is not used`,
			}, []string{backend, cluster}},
		{"node addresses and prefixes", []model.Object{badNode(func(n *model.Node) {
			n.Addresses = append(n.Addresses, model.NodeAddress{Type: "InternalIP", Address: "172.16.0"},
				model.NodeAddress{Type: "ExternalIP", Address: "::"})
			n.PodCIDRs = append(n.PodCIDRs, "10.1.0.0", "10.1.0.0/33")
		})},
			[]string{
				`Node n1: spec.podCIDRs[2]: "10.1.0.0" is not an IP prefix: not used`,
				`Node n1: spec.podCIDRs[3]: "10.1.0.0/33" is not an IP prefix: not used`,
				`Node n1: status.addresses[2].address: "172.16.0" is not an IP address: not used`,
				"Node n1: status.addresses[3].address: :: is the unspecified address: not used",
			}, []string{`node n1 zone "z1"`}},
		{"pod addresses", []model.Object{pod("p", "u", "n1", "10.1.0.1", "10.1.0")},
			[]string{`Pod ns/p: status.podIPs[1].ip: "10.1.0" is not an IP address: not used`},
			[]string{"endpoint node/n1 ns/p u 10.1.0.1"}},
		{"settings", []model.Object{
			&model.Settings{Name: "default", NodePorts: &model.PortRange{First: 5, Last: 4}},
			&model.Settings{Name: "mine", NodePorts: &model.PortRange{First: 5, Last: 6}},
		},
			[]string{
				"Settings default: spec.nodePorts: 5-4 is not a range of ports: 30000-32767 is used",
				`Settings mine: metadata.name: only the settings named "default" are used`,
			}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := fresh(newWorld(test.objects...))
			var problems []string
			for _, p := range g.Problems() {
				problems = append(problems, p.String())
			}
			if !slices.Equal(problems, test.problems) {
				t.Errorf("problems:\n%s\nwant:\n%s", strings.Join(problems, "\n"), strings.Join(test.problems, "\n"))
			}
			slices.Sort(test.lines)
			if diff := difference(flatten(t, g), test.lines); diff != "" {
				t.Errorf("in use:\n%s", diff)
			}
		})
	}
}
