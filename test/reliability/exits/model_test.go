// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/bpf/layout"
	"github.com/millrace-project/millrace/test/testbed"
)

// model is what the services of the cluster are to look like.
type model map[string]testbed.Service

func (m model) clone() model {
	c := model{}
	for name, s := range m {
		s.Ports, s.Endpoints, s.ExternalIPs = slices.Clone(s.Ports), slices.Clone(s.Endpoints), slices.Clone(s.ExternalIPs)
		c[name] = s
	}
	return c
}

// frontend is what a client dials.
type frontend struct {
	addr  netip.AddrPort
	proto uint8
}

func (f frontend) String() string { return fmt.Sprintf("%s/%d", f.addr, f.proto) }

func (f frontend) network() string {
	if f.proto == protoTCP {
		return "tcp"
	}
	return "udp"
}

const (
	protoTCP = 6
	protoUDP = 17
)

// answer is who answers at a frontend.
type answer struct {
	id       layout.IDKey // of the service port
	backends []string     // sorted
}

func (a answer) String() string { return fmt.Sprintf("port %s at %v", a.id.String()[:8], a.backends) }

func (a answer) equal(b answer) bool { return a.id == b.id && slices.Equal(a.backends, b.backends) }

// frontends are those that a node is to have.
func (m model) frontends(node *testbed.Node) map[frontend]answer {
	all := map[frontend]answer{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		s := m[name]
		for _, port := range s.Ports {
			proto := uint8(protoTCP)
			if port.Protocol == corev1.ProtocolUDP {
				proto = protoUDP
			}
			id := layout.NewIDKey("service-port", fmt.Sprintf("%s/%s/%s/%s", testbed.Namespace, name, port.Name, port.Protocol))
			add := func(addr netip.Addr, number uint16) {
				a := answer{id: id, backends: []string{}}
				for _, e := range s.Endpoints {
					ip := e.IPv4
					if addr.Is6() {
						ip = e.IPv6
					}
					a.backends = append(a.backends, netip.AddrPortFrom(ip, port.Target).String())
				}
				slices.Sort(a.backends)
				all[frontend{netip.AddrPortFrom(addr, number), proto}] = a
			}
			for _, addr := range slices.Concat(s.ClusterIPs, s.ExternalIPs) {
				add(addr, port.Port)
			}
			if port.NodePort == 0 {
				continue
			}
			for _, addr := range []netip.Addr{node.IPv4, node.IPv6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
				add(addr, port.NodePort)
			}
		}
	}
	return all
}

// numbers of the services that a model may have; a service's number decides its
// addresses, its node port and the port of its endpoints, which no other
// service's share: an answer tells whose it is.
const (
	stableNumber = 1
	firstNumber  = 2
	lastNumber   = 12
	largeNumber  = 13
)

func target(n int) uint16 { return uint16(8000 + n) }

func service(n int, endpoints ...testbed.Endpoint) testbed.Service {
	return testbed.Service{
		Name:       fmt.Sprintf("svc-%d", n),
		ClusterIPs: []netip.Addr{testbed.ServiceIP(4, n), testbed.ServiceIP(6, n)},
		Ports: []testbed.Port{
			portOf(n, corev1.ProtocolTCP, uint16(30000+n)),
			portOf(n, corev1.ProtocolUDP, uint16(30000+n)),
		},
		Endpoints: endpoints,
	}
}

func portOf(n int, protocol corev1.Protocol, nodePort uint16) testbed.Port {
	return testbed.Port{Name: "echo-" + strings.ToLower(string(protocol)), Protocol: protocol, Port: 80,
		Target: target(n), NodePort: nodePort}
}

// mutation is a change of a model; false if it does not apply.
type mutation struct {
	name  string
	apply func(r *rand.Rand, m model, pods []testbed.Endpoint) bool
}

// pick returns a service that may be changed, by number.
func pick(r *rand.Rand, m model, fits func(testbed.Service) bool) (int, testbed.Service, bool) {
	var numbers []int
	for n := firstNumber; n <= lastNumber; n++ {
		if s, ok := m[fmt.Sprintf("svc-%d", n)]; ok && fits(s) {
			numbers = append(numbers, n)
		}
	}
	if len(numbers) == 0 {
		return 0, testbed.Service{}, false
	}
	n := numbers[r.IntN(len(numbers))]
	return n, m[fmt.Sprintf("svc-%d", n)], true
}

// some returns count endpoints of all.
func some(r *rand.Rand, all []testbed.Endpoint, count int) []testbed.Endpoint {
	chosen := slices.Clone(all)
	r.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
	return chosen[:min(count, len(chosen))]
}

// edit is a mutation of one service.
func edit(name string, fits func(testbed.Service) bool, change func(r *rand.Rand, n int, s *testbed.Service, pods []testbed.Endpoint)) mutation {
	return mutation{name, func(r *rand.Rand, m model, pods []testbed.Endpoint) bool {
		n, s, ok := pick(r, m, fits)
		if !ok {
			return false
		}
		change(r, n, &s, pods)
		m[s.Name] = s
		return true
	}}
}

func every(testbed.Service) bool { return true }

var mutations = []mutation{
	{"add", func(r *rand.Rand, m model, pods []testbed.Endpoint) bool {
		for n := firstNumber; n <= lastNumber; n++ {
			if s := service(n, some(r, pods, 1+r.IntN(len(pods)))...); m[s.Name].Name == "" {
				m[s.Name] = s
				return true
			}
		}
		return false
	}},
	{"remove", func(r *rand.Rand, m model, _ []testbed.Endpoint) bool {
		_, s, ok := pick(r, m, every)
		delete(m, s.Name)
		return ok
	}},
	// The service of the long flows grows and shrinks around their backend, its first.
	{"scale the stable one", func(r *rand.Rand, m model, pods []testbed.Endpoint) bool {
		s := m["svc-1"]
		if len(s.Endpoints) > 1 {
			s.Endpoints = s.Endpoints[:1]
		} else {
			s.Endpoints = append(s.Endpoints, slices.DeleteFunc(slices.Clone(pods),
				func(e testbed.Endpoint) bool { return e == s.Endpoints[0] })...)
		}
		m["svc-1"] = s
		return true
	}},
	edit("append backends", func(s testbed.Service) bool { return len(s.Endpoints) > 0 && len(s.Endpoints) < 3 },
		func(_ *rand.Rand, _ int, s *testbed.Service, pods []testbed.Endpoint) {
			for _, e := range pods {
				if !slices.Contains(s.Endpoints, e) {
					s.Endpoints = append(s.Endpoints, e)
				}
			}
		}),
	edit("drop backends", func(s testbed.Service) bool { return len(s.Endpoints) > 1 },
		func(r *rand.Rand, _ int, s *testbed.Service, _ []testbed.Endpoint) {
			s.Endpoints = some(r, s.Endpoints, 1)
		}),
	edit("replace backends", func(s testbed.Service) bool { return len(s.Endpoints) > 0 && len(s.Endpoints) < 4 },
		func(_ *rand.Rand, _ int, s *testbed.Service, pods []testbed.Endpoint) {
			var others []testbed.Endpoint
			for _, e := range pods {
				if !slices.Contains(s.Endpoints, e) {
					others = append(others, e)
				}
			}
			s.Endpoints = others
		}),
	edit("no backends", func(s testbed.Service) bool { return len(s.Endpoints) > 0 },
		func(_ *rand.Rand, _ int, s *testbed.Service, _ []testbed.Endpoint) { s.Endpoints = nil }),
	edit("backends again", func(s testbed.Service) bool { return len(s.Endpoints) == 0 },
		func(r *rand.Rand, _ int, s *testbed.Service, pods []testbed.Endpoint) { s.Endpoints = some(r, pods, 2) }),
	edit("rename a port", every, func(_ *rand.Rand, _ int, s *testbed.Service, _ []testbed.Endpoint) {
		if s.Ports[0].Name += "-x"; len(s.Ports[0].Name) > 12 {
			s.Ports[0].Name = "echo"
		}
	}),
	edit("other node ports", func(s testbed.Service) bool { return s.Ports[0].NodePort != 0 },
		func(_ *rand.Rand, n int, s *testbed.Service, _ []testbed.Endpoint) {
			for i := range s.Ports {
				s.Ports[i].NodePort = uint16(30000+n) + 100 - s.Ports[i].NodePort/30100*100
			}
		}),
	edit("drop a port", func(s testbed.Service) bool { return len(s.Ports) > 1 },
		func(_ *rand.Rand, _ int, s *testbed.Service, _ []testbed.Endpoint) { s.Ports = s.Ports[:1] }),
	edit("add a port", func(s testbed.Service) bool { return len(s.Ports) == 1 },
		func(_ *rand.Rand, n int, s *testbed.Service, _ []testbed.Endpoint) {
			s.Ports = append(s.Ports, portOf(n, corev1.ProtocolUDP, s.Ports[0].NodePort))
		}),
	{"add an external address", func(r *rand.Rand, m model, _ []testbed.Endpoint) bool {
		n, s, ok := pick(r, m, func(s testbed.Service) bool { return len(s.ExternalIPs) == 0 })
		addr := testbed.ExternalIP(4, n)
		for _, other := range m {
			ok = ok && !slices.Contains(other.ExternalIPs, addr) // it may have moved
		}
		if ok {
			s.ExternalIPs = []netip.Addr{addr, testbed.ExternalIP(6, n)}
			m[s.Name] = s
		}
		return ok
	}},
	{"move an external address", func(r *rand.Rand, m model, _ []testbed.Endpoint) bool {
		_, from, ok := pick(r, m, func(s testbed.Service) bool { return len(s.ExternalIPs) > 0 })
		_, to, found := pick(r, m, func(s testbed.Service) bool { return len(s.ExternalIPs) == 0 })
		if !ok || !found {
			return false
		}
		to.ExternalIPs, from.ExternalIPs = from.ExternalIPs, nil
		m[from.Name], m[to.Name] = from, to
		return true
	}},
}
