// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"strings"

	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
)

// source gives small numbers from bytes; at the end it gives zeros.
type source struct{ data []byte }

func (s *source) next() int {
	if len(s.data) == 0 {
		return 0
	}
	value := s.data[0]
	s.data = s.data[1:]
	return int(value)
}

func pick[T any](s *source, choices ...T) T { return choices[s.next()%len(choices)] }

// some gives up to most picks.
func some[T any](s *source, most int, one func() T) []T {
	var list []T
	for range s.next() % (most + 1) {
		list = append(list, one())
	}
	return list
}

// The universe is small, so that objects meet: names, addresses and ports are
// few and many are wrong.

func (s *source) namespace() string { return pick(s, "a", "b") }
func (s *source) name() string      { return pick(s, "x", "y", "z") }
func (s *source) node() string      { return pick(s, "n1", "n2", "") }

func (s *source) frontendAddr() string {
	return pick(s, "10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::1", "2001:db8::1", "192.0.2.2", "bogus", "0.0.0.0")
}

func (s *source) backendAddr() string {
	choice := s.next()
	switch {
	case choice < 12:
		return pick(s, "", "ff02::1", "127.0.0.1", "10.1.1")
	case choice < 80:
		return fmt.Sprintf("fd01::%x", choice%7+1)
	default:
		return fmt.Sprintf("10.1.0.%d", choice%11+1)
	}
}

func (s *source) port() int32 { return pick[int32](s, 80, 443, 8080, 80, 443, 0, 70000) }

func (s *source) protocol() string { return pick(s, "TCP", "", "UDP", "SCTP", "QUIC", "UDP", "TCP") }

func (s *source) labels() map[string]string {
	return pick(s, nil, nil, nil, nil, nil,
		map[string]string{model.LabelServiceProxyName: ""}, map[string]string{model.LabelHeadless: ""})
}

func (s *source) flag() *bool {
	yes, no := true, false
	return pick(s, nil, &yes, &no)
}

func (s *source) service(namespace, name string) *model.Service {
	return &model.Service{
		Namespace: namespace, Name: name, Labels: s.labels(),
		Created:     int64(s.next() % 3),
		Type:        pick(s, "", "ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "NodePort", "Odd"),
		ClusterIPs:  pick(s, []string{s.frontendAddr()}, []string{s.frontendAddr(), s.frontendAddr()}, []string{"None"}, nil),
		ExternalIPs: some(s, 3, s.frontendAddr),
		Ports: some(s, 3, func() model.ServicePort {
			return model.ServicePort{
				Name: pick(s, "", "p", "q"), Protocol: s.protocol(), Port: s.port(),
				NodePort: pick[int32](s, 0, 30080, 30443, 66000, -1),
			}
		}),
		Ingress: some(s, 2, func() model.LoadBalancerIngress {
			return model.LoadBalancerIngress{IP: s.frontendAddr(), IPMode: pick(s, "", "VIP", "Proxy", "Odd")}
		}),
		SessionAffinity: pick(s, "", "", "None", "ClientIP", "Odd"),
		AffinityTimeout: s.affinityTimeout(),
	}
}

func (s *source) affinityTimeout() *int32 {
	seconds := pick[int32](s, 15, 86400, 0, 86401, -1)
	return pick(s, nil, &seconds)
}

func (s *source) slice(namespace, name string) *model.EndpointSlice {
	labels := map[string]string{model.LabelServiceName: s.name()}
	switch s.next() % 10 {
	case 0:
		delete(labels, model.LabelServiceName)
	case 1:
		labels[model.LabelHeadless] = ""
	}
	return &model.EndpointSlice{
		Namespace: namespace, Name: name, Labels: labels,
		AddressType: pick(s, "IPv4", "IPv4", "IPv6", "IPv4", "FQDN", "IPv6", "odd"),
		Ports: some(s, 3, func() model.EndpointPort {
			port := s.port()
			return model.EndpointPort{Name: pick(s, "", "p", "q"), Protocol: s.protocol(), Port: pick(s, &port, &port, &port, nil)}
		}),
		Endpoints: some(s, 6, func() model.Endpoint {
			return model.Endpoint{
				Addresses: some(s, 2, s.backendAddr), NodeName: s.node(), Zone: pick(s, "", "", "zone-e"),
				Ready: s.flag(), Serving: s.flag(), Terminating: s.flag(),
			}
		}),
	}
}

func (s *source) object() model.Object {
	switch kind := s.next() % 17; {
	case kind < 5:
		return s.service(s.namespace(), s.name())
	case kind < 10:
		return s.slice(s.namespace(), s.name())
	case kind < 12:
		return &model.Node{
			Name:   pick(s, "n1", "n2", "n3"),
			Labels: map[string]string{model.LabelZone: pick(s, "", "zone-1", "zone-2")},
			Addresses: some(s, 3, func() model.NodeAddress {
				return model.NodeAddress{Type: pick(s, "InternalIP", "ExternalIP", "Hostname"), Address: s.frontendAddr()}
			}),
			PodCIDRs: some(s, 2, func() string { return pick(s, "10.1.0.0/16", "10.1.2.3/24", "fd01::/64", "10.1.0.0", "::/129") }),
		}
	case kind < 14:
		return &model.Pod{
			Namespace: s.namespace(), Name: s.name(), UID: pick(s, "u1", "u2"), NodeName: s.node(),
			HostNetwork: s.next()%5 == 0, Phase: pick(s, "Running", "", "Succeeded", "Failed", "Pending"),
			PodIPs: some(s, 3, s.backendAddr),
		}
	case kind < 15:
		return &model.ConfigMap{
			Namespace: s.namespace(), Name: "calculators",
			Calculators: strings.Join(some(s, 3, func() string {
				return pick(s, "10.0.0.1:7700", "[fd00::1]:7700", "calc.example:1", "bogus", "10.0.0.1:0", "# none", "::ffff:10.0.0.1:7700")
			}), "\n"),
			Authorities: pick(s, "", "", "bogus"),
		}
	case kind < 16:
		return &model.Namespace{Name: s.namespace()}
	default:
		return &model.Settings{
			Name:      pick(s, model.SettingsName, "other"),
			NodePorts: pick(s, nil, &model.PortRange{First: 20000, Last: 21000}, &model.PortRange{First: 9, Last: 5}),
		}
	}
}

// change gives one change; about one in five takes an object away.
func (s *source) change() graph.Change {
	gone := s.next()%5 == 0
	object := s.object()
	if gone {
		return graph.Gone(object.Key())
	}
	return graph.Set(object)
}

// steps decodes all data into batches.
func (s *source) steps(most int) [][]graph.Change {
	var steps [][]graph.Change
	for len(s.data) > 0 && len(steps) < most {
		var changes []graph.Change
		for range s.next()%4 + 1 {
			changes = append(changes, s.change())
		}
		steps = append(steps, changes)
	}
	return steps
}
