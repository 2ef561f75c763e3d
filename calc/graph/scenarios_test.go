// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"slices"

	"github.com/millrace-project/millrace/calc/model"
)

// sequence is a named row of states of a cluster.
type sequence struct {
	name   string
	worlds []world
}

func service(name string, edits ...func(*model.Service)) *model.Service {
	s := &model.Service{
		Namespace: "ns", Name: name, Created: 100,
		ClusterIPs: []string{"10.96.0.1"},
		Ports:      []model.ServicePort{{Name: "web", Protocol: "TCP", Port: 80}},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func clusterIPs(ips ...string) func(*model.Service) {
	return func(s *model.Service) { s.ClusterIPs = ips }
}

func externalIPs(ips ...string) func(*model.Service) {
	return func(s *model.Service) { s.ExternalIPs = ips }
}

func ingress(ips ...string) func(*model.Service) {
	return func(s *model.Service) {
		for _, ip := range ips {
			s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: ip})
		}
	}
}

func nodePort(port int32) func(*model.Service) {
	return func(s *model.Service) { s.Ports[0].NodePort = port }
}

func clientIP(timeout *int32) func(*model.Service) {
	return func(s *model.Service) { s.SessionAffinity, s.AffinityTimeout = "ClientIP", timeout }
}

func seconds(n int32) *int32 { return &n }

func created(when int64) func(*model.Service) {
	return func(s *model.Service) { s.Created = when }
}

func ports(list ...model.ServicePort) func(*model.Service) {
	return func(s *model.Service) { s.Ports = list }
}

func label(key, value string) func(*model.Service) {
	return func(s *model.Service) { s.Labels = map[string]string{key: value} }
}

func ptr[T any](value T) *T { return &value }

// endpointSlice makes an IPv4 slice of the service with one web port.
func endpointSlice(name, of string, endpoints ...model.Endpoint) *model.EndpointSlice {
	return &model.EndpointSlice{
		Namespace: "ns", Name: name, Labels: map[string]string{model.LabelServiceName: of},
		AddressType: "IPv4",
		Ports:       []model.EndpointPort{{Name: "web", Protocol: "TCP", Port: ptr[int32](8080)}},
		Endpoints:   endpoints,
	}
}

func slicePorts(slice *model.EndpointSlice, list ...model.EndpointPort) *model.EndpointSlice {
	slice.Ports = list
	return slice
}

func endpoint(addr, node string) model.Endpoint {
	return model.Endpoint{Addresses: []string{addr}, NodeName: node}
}

func terminating(e model.Endpoint, serving bool) model.Endpoint {
	e.Ready, e.Serving, e.Terminating = ptr(false), &serving, ptr(true)
	return e
}

func node(name, zone string) *model.Node {
	return &model.Node{
		Name: name, Labels: map[string]string{model.LabelZone: zone},
		PodCIDRs:  []string{"10.1.0.0/24", "fd01::/64"},
		Addresses: []model.NodeAddress{{Type: "InternalIP", Address: "172.16.0.1"}, {Type: "Hostname", Address: name}},
	}
}

func pod(name, uid, node string, ips ...string) *model.Pod {
	return &model.Pod{Namespace: "ns", Name: name, UID: uid, NodeName: node, Phase: "Running", PodIPs: ips}
}

func many(first, count int, node string) []model.Endpoint {
	var endpoints []model.Endpoint
	for i := first; i < first+count; i++ {
		endpoints = append(endpoints, endpoint(fmt.Sprintf("10.%d.%d.%d", 2+i>>16, i>>8&255, i&255), node))
	}
	return endpoints
}

func sequences() []sequence {
	return []sequence{
		{"service, backends, nodes", []world{
			newWorld(service("x")),
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1"))),
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1")), node("n1", "z1")),
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1")), node("n1", "z2")),
			newWorld(endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1")), node("n1", "z2")),
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1"))),
		}},
		{"external IP changes hands", []world{
			newWorld(service("x", created(1), externalIPs("192.0.2.1")),
				service("y", created(2), clusterIPs("10.96.0.2"), externalIPs("192.0.2.1"))),
			newWorld(service("y", created(2), clusterIPs("10.96.0.2"), externalIPs("192.0.2.1"))),
			newWorld(service("x", created(3), externalIPs("192.0.2.1")),
				service("y", created(2), clusterIPs("10.96.0.2"), externalIPs("192.0.2.1")),
				service("w", created(2), clusterIPs("10.96.0.3"), ingress("192.0.2.1"))),
			newWorld(service("x", created(3), externalIPs("192.0.2.1")),
				service("y", created(2), clusterIPs("10.96.0.2"), externalIPs("192.0.2.1"),
					ports(model.ServicePort{Name: "web", Port: 81}))),
		}},
		{"cluster IP changes hands", []world{
			newWorld(service("x", created(1)), service("y", created(2)), service("z", created(0), clusterIPs("10.96.0.9"), externalIPs("10.96.0.1"))),
			newWorld(service("x", created(1), clusterIPs("10.96.0.5")), service("y", created(2)),
				service("z", created(0), clusterIPs("10.96.0.9"), externalIPs("10.96.0.1"))),
			newWorld(service("x", created(1), clusterIPs("10.96.0.5")), service("y", created(2), ports(model.ServicePort{Port: 9})),
				service("z", created(0), clusterIPs("10.96.0.9"), externalIPs("10.96.0.1"))),
			newWorld(service("z", created(0), clusterIPs("10.96.0.9"), externalIPs("10.96.0.1"))),
		}},
		{"node port changes hands and protocol", []world{
			newWorld(service("x", created(1), nodePort(30000)), service("y", created(2), clusterIPs("10.96.0.2"), nodePort(30000))),
			newWorld(service("x", created(3), nodePort(30000)), service("y", created(2), clusterIPs("10.96.0.2"), nodePort(30000))),
			newWorld(service("x", created(3), ports(model.ServicePort{Name: "web", Protocol: "UDP", Port: 80, NodePort: 30000})),
				service("y", created(2), clusterIPs("10.96.0.2"), nodePort(30000))),
			newWorld(service("x", created(3), nodePort(30000))),
		}},
		{"session affinity goes on and off", []world{
			newWorld(service("x")),
			newWorld(service("x", clientIP(nil))),
			newWorld(service("x", clientIP(seconds(15)))),
			newWorld(service("x", func(s *model.Service) { s.SessionAffinity = "None" })),
		}},
		{"service becomes something else", []world{
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1"))),
			newWorld(service("x", func(s *model.Service) { s.Type = "ExternalName" }), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1"))),
			newWorld(service("x", clusterIPs("None")), endpointSlice("x-1", "x", endpoint("10.1.0.2", "n1"))),
			newWorld(service("x", label(model.LabelServiceProxyName, "other")), endpointSlice("x-1", "x", endpoint("10.1.0.2", "n1"))),
			newWorld(service("x", label(model.LabelHeadless, "")), endpointSlice("x-1", "x", endpoint("10.1.0.3", "n1"))),
			newWorld(service("x", clusterIPs("10.96.0.1", "fd00::1")), endpointSlice("x-1", "x", endpoint("10.1.0.3", "n1"))),
		}},
		{"conditions", []world{
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1"), endpoint("10.1.0.2", "n2"))),
			newWorld(service("x"), endpointSlice("x-1", "x", terminating(endpoint("10.1.0.1", "n1"), true), endpoint("10.1.0.2", "n2"))),
			newWorld(service("x"), endpointSlice("x-1", "x", terminating(endpoint("10.1.0.1", "n1"), false), endpoint("10.1.0.2", "n2"))),
			newWorld(service("x"), endpointSlice("x-1", "x",
				model.Endpoint{Addresses: []string{"10.1.0.2"}, Ready: ptr(false)})),
		}},
		{"endpoint moves between slices", []world{
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1")), endpointSlice("x-2", "x")),
			newWorld(service("x"), endpointSlice("x-1", "x", endpoint("10.1.0.1", "n1")),
				endpointSlice("x-2", "x", terminating(endpoint("10.1.0.1", "n2"), true))),
			newWorld(service("x"), endpointSlice("x-1", "x", terminating(endpoint("10.1.0.1", "n1"), true)),
				endpointSlice("x-2", "x", model.Endpoint{Addresses: []string{"10.1.0.1"}, Ready: ptr(false), Serving: ptr(false)})),
			newWorld(service("x"), endpointSlice("x-2", "x", endpoint("10.1.0.1", "n2"))),
			newWorld(service("x"), service("y", clusterIPs("10.96.0.2")), endpointSlice("x-2", "y", endpoint("10.1.0.1", "n2"))),
		}},
		{"ports differ between slices", []world{
			newWorld(service("x"),
				slicePorts(endpointSlice("x-1", "x", endpoint("10.1.0.1", ""), endpoint("10.1.0.2", "")),
					model.EndpointPort{Name: "web", Port: ptr[int32](8080)}, model.EndpointPort{Name: "adm", Port: ptr[int32](9090)}),
				slicePorts(endpointSlice("x-2", "x", endpoint("10.1.0.1", ""), endpoint("10.1.0.3", "")),
					model.EndpointPort{Name: "web", Port: ptr[int32](8081)}, model.EndpointPort{Name: "adm", Port: ptr[int32](9090)})),
			newWorld(service("x"),
				slicePorts(endpointSlice("x-1", "x", endpoint("10.1.0.1", ""), endpoint("10.1.0.2", "")),
					model.EndpointPort{Name: "web", Port: ptr[int32](8080)}),
				slicePorts(endpointSlice("x-2", "x", endpoint("10.1.0.1", ""), endpoint("10.1.0.3", "")),
					model.EndpointPort{Name: "adm", Port: ptr[int32](9090)})),
		}},
		{"growth through chunk counts", []world{
			newWorld(service("x"), endpointSlice("x-1", "x", many(0, 64, "n1")...), node("n1", "z1")),
			newWorld(service("x"), endpointSlice("x-1", "x", many(0, 64, "n1")...), endpointSlice("x-2", "x", many(64, 1, "n1")...), node("n1", "z1")),
			newWorld(service("x"), endpointSlice("x-1", "x", many(0, 200, "n1")...), endpointSlice("x-2", "x", many(150, 100, "n1")...), node("n1", "z2")),
			newWorld(service("x"), endpointSlice("x-2", "x", many(150, 100, "n1")...), node("n1", "z2")),
			newWorld(service("x"), endpointSlice("x-2", "x", many(150, 3, "n1")...), node("n1", "")),
			newWorld(service("x"), endpointSlice("x-2", "x"), node("n1", "")),
		}},
		{"single edits among many chunks", editsAmongMany()},
		{"pods come, move and end", []world{
			newWorld(node("n1", ""), node("n2", ""), pod("p", "u1", "n1")),
			newWorld(node("n1", ""), node("n2", ""), pod("p", "u1", "n1", "10.1.0.1", "fd01::1")),
			newWorld(node("n1", ""), node("n2", ""), pod("p", "u2", "n2", "10.1.1.1")),
			newWorld(node("n1", ""), node("n2", ""), pod("p", "u2", "n1", "10.1.1.1")),
			newWorld(node("n1", ""), pod("p", "u2", "n2", "10.1.1.1"), pod("q", "u3", "n1", "10.1.0.1")),
			newWorld(node("n1", ""), func() *model.Pod { p := pod("p", "u2", "n2", "10.1.1.1"); p.Phase = "Failed"; return p }(),
				func() *model.Pod { p := pod("q", "u3", "n1", "10.1.0.1"); p.HostNetwork = true; return p }()),
		}},
		{"settings", []world{
			newWorld(node("n1", ""), node("n2", "")),
			newWorld(node("n1", ""), node("n2", ""), &model.Settings{Name: "default", NodePorts: &model.PortRange{First: 1000, Last: 2000}}),
			newWorld(node("n1", ""), node("n3", ""), &model.Settings{Name: "default", NodePorts: &model.PortRange{First: 0, Last: 2000}}),
			newWorld(node("n1", ""), &model.Settings{Name: "wrong", NodePorts: &model.PortRange{First: 1000, Last: 2000}}),
		}},
	}
}

// editsAmongMany removes, adds and changes single endpoints of a service of
// several chunks, at places all over the order of hashes.
func editsAmongMany() []world {
	var worlds []world
	with := func(endpoints []model.Endpoint) {
		worlds = append(worlds, newWorld(service("x"), node("n1", "z1"),
			endpointSlice("x-1", "x", endpoints[:90]...), endpointSlice("x-2", "x", endpoints[90:]...)))
	}
	all := many(0, 200, "n1")
	with(all)
	for i := 0; i < len(all); i += 50 {
		with(slices.Delete(slices.Clone(all), i, i+1))
		with(slices.Insert(slices.Clone(all), i, many(1000+i, 1, "n1")...))
		edited := slices.Clone(all)
		edited[i].NodeName = "n2"
		with(edited)
		with(all)
	}
	return worlds
}
