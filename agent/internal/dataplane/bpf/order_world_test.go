// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/held"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// world is a cluster that changes at random: services come, go, scale, change
// ports and addresses, and claim each other's; nodes change theirs.
type world struct {
	*rand.Rand
	services map[int]*worldService
	nodes    map[int]*dataplanev1.Node
	config   *dataplanev1.NodeConfig
	// sent are the resources that were given to the agent.
	sent map[held.Name]string
}

type worldService struct {
	service *dataplanev1.Service
	slices  []*dataplanev1.BackendSlice
}

const (
	worldServices = 8
	worldNodes    = 3
)

func newWorld(r *rand.Rand) *world {
	w := &world{Rand: r, services: map[int]*worldService{}, nodes: map[int]*dataplanev1.Node{},
		config: &dataplanev1.NodeConfig{NodeName: "n0", NodePorts: &dataplanev1.PortRange{First: 30000, Last: 32767}},
		sent:   map[held.Name]string{}}
	for i := range worldNodes {
		w.changeNode(i)
	}
	return w
}

func address(format string, a ...any) []byte {
	return netip.MustParseAddr(fmt.Sprintf(format, a...)).AsSlice()
}

// changeNode gives a node other addresses.
func (w *world) changeNode(i int) {
	n := &dataplanev1.Node{Name: fmt.Sprintf("n%d", i), Zone: fmt.Sprintf("z%d", w.IntN(2))}
	for k := range 1 + w.IntN(2) {
		n.InternalAddresses = append(n.InternalAddresses, address("192.168.%d.%d", 20+k, 2+i), address("2001:db8::%d:%d", k+1, 2+i))
	}
	n.PodCidrs = []*dataplanev1.Prefix{
		{Address: address("10.1.%d.0", i), Length: 24}, {Address: address("fd01:0:0:%d::", i), Length: 64}}
	if w.IntN(3) == 0 {
		n.PodCidrs = append(n.PodCidrs, &dataplanev1.Prefix{Address: address("10.2.%d.0", i), Length: uint32(24 + w.IntN(3))})
	}
	w.nodes[i] = n
}

// changeService makes a service anew.
func (w *world) changeService(i int) {
	s := &dataplanev1.Service{Namespace: "shop", Name: fmt.Sprintf("s%d", i)}
	families := w.IntN(3)
	if families != 1 {
		s.ClusterIps = append(s.ClusterIps, address("10.9.0.%d", 1+i))
	}
	if families != 0 {
		s.ClusterIps = append(s.ClusterIps, address("fd09::%d", 1+i))
	}
	set := &dataplanev1.PortSet{}
	for n := range 1 + w.IntN(2) {
		p := &dataplanev1.ServicePort{Name: fmt.Sprintf("p%d", n), Protocol: []dataplanev1.Protocol{6, 17}[w.IntN(2)],
			Port: uint32(80 + 10*n + w.IntN(2))}
		if w.IntN(2) == 0 {
			p.NodePort = uint32(30000 + 2*i + n)
		}
		s.Ports = append(s.Ports, p)
		set.Ports = append(set.Ports, &dataplanev1.TargetPort{Name: p.GetName(), Protocol: p.GetProtocol(), Port: uint32(8080 + w.IntN(2))})
	}
	for range w.IntN(3) { // few addresses for many services
		number := 1 + w.IntN(3)
		s.ExternalIps = append(s.ExternalIps,
			&dataplanev1.ServiceAddress{Address: address("203.0.113.%d", number), Ports: []uint32{0}},
			&dataplanev1.ServiceAddress{Address: address("2001:db8:113::%d", number), Ports: []uint32{0}})
	}
	if w.IntN(2) == 0 {
		s.SessionAffinity = &dataplanev1.SessionAffinity{TimeoutSeconds: 3600}
	}
	ws := &worldService{service: s}
	for chunk := range w.IntN(3) {
		slice := &dataplanev1.BackendSlice{Namespace: "shop", Name: s.GetName(), Chunk: uint32(chunk), PortSets: []*dataplanev1.PortSet{set}}
		ws.slices = append(ws.slices, slice)
	}
	s.BackendSlices = uint32(len(ws.slices))
	w.services[i] = ws
	w.scale(i)
}

// scale gives a service other backends. An address tells whose it is.
func (w *world) scale(i int) {
	ws := w.services[i]
	for chunk, old := range ws.slices {
		slice := &dataplanev1.BackendSlice{Namespace: old.GetNamespace(), Name: old.GetName(), Chunk: old.GetChunk(), PortSets: old.GetPortSets()}
		n := w.IntN(6)
		if w.IntN(2) == 0 { // a prefix of what was, or more behind it: done in place
			slice.Backends = slices.Clone(old.GetBackends())
			slice.Backends = slice.Backends[:min(len(slice.Backends), n)]
		}
		for k := len(slice.Backends); k < n; k++ {
			host, node := 16*chunk+2*k+w.IntN(2), w.IntN(worldNodes)
			backend := &dataplanev1.Backend{Address: address("10.1.%d.%d", 100+i, host), Node: fmt.Sprintf("n%d", node), Ready: true, Serving: true}
			if w.IntN(3) == 0 {
				backend.Address = address("fd01:0:0:%d::%x", 100+i, host)
			}
			if w.IntN(6) == 0 {
				backend.Ready, backend.Terminating = false, true
			}
			slice.Backends = append(slice.Backends, backend)
		}
		ws.slices[chunk] = slice
	}
}

// step changes the cluster and returns the batch.
func (w *world) step() *held.Batch {
	for range 1 + w.IntN(4) {
		i := w.IntN(worldServices)
		switch k := w.IntN(10); {
		case w.services[i] == nil || k < 2:
			w.changeService(i)
		case k < 4:
			delete(w.services, i)
		case k < 8:
			w.scale(i)
		case k < 9:
			// Everything of one service becomes another's.
			other := w.IntN(worldServices)
			if other != i && w.services[other] != nil {
				w.services[other].service.ExternalIps = w.services[i].service.GetExternalIps()
				w.services[i].service = cloneWithout(w.services[i].service)
			}
		default:
			w.changeNode(w.IntN(worldNodes))
		}
	}
	return w.batch()
}

func cloneWithout(s *dataplanev1.Service) *dataplanev1.Service {
	return &dataplanev1.Service{Namespace: s.GetNamespace(), Name: s.GetName(), ClusterIps: s.GetClusterIps(), Ports: s.GetPorts(), BackendSlices: s.GetBackendSlices()}
}

// batch returns what leads from what was sent to the present.
func (w *world) batch() *held.Batch {
	var all []*dataplanev1.Resource
	add := func(t dataplanev1.ResourceType, key string, r *dataplanev1.Resource) {
		r.Name = name(t, key)
		all = append(all, r)
	}
	add(1, "n0", &dataplanev1.Resource{Content: &dataplanev1.Resource_NodeConfig{NodeConfig: w.config}})
	for _, n := range w.nodes {
		add(2, n.GetName(), &dataplanev1.Resource{Content: &dataplanev1.Resource_Node{Node: n}})
	}
	for _, s := range w.services {
		key := "shop/" + s.service.GetName()
		add(5, key, &dataplanev1.Resource{Content: &dataplanev1.Resource_Service{Service: s.service}})
		for _, slice := range s.slices {
			add(4, fmt.Sprintf("%s/%d", key, slice.GetChunk()), &dataplanev1.Resource{Content: &dataplanev1.Resource_BackendSlice{BackendSlice: slice}})
		}
	}
	b := held.NewBatch()
	now := map[held.Name]string{}
	for _, r := range all {
		n, entry, err := held.FromProto(r)
		if err != nil {
			panic(err) // of messages that were made here
		}
		now[n] = string(entry.Data)
		if w.sent[n] != now[n] {
			b.Upsert(n, entry)
		}
	}
	for n := range w.sent {
		if _, ok := now[n]; !ok {
			b.Remove(n)
		}
	}
	w.sent = now
	return b
}

// wanted are the backends that the cluster IPs of a service are to lead to, by
// address, port and protocol.
func (w *world) wanted() map[string][]string {
	all := map[string][]string{}
	for _, s := range w.services {
		for _, raw := range s.service.GetClusterIps() {
			addr, _ := netip.AddrFromSlice(raw)
			for _, p := range s.service.GetPorts() {
				key := fmt.Sprintf("%s/%d", netip.AddrPortFrom(addr, uint16(p.GetPort())), p.GetProtocol())
				ready, serving := s.backends(addr, p)
				if len(ready) == 0 {
					ready = serving
				}
				slices.Sort(ready)
				all[key] = slices.Compact(ready)
			}
		}
	}
	return all
}

// backends are those of a port in an address's family.
func (s *worldService) backends(like netip.Addr, p *dataplanev1.ServicePort) (ready, serving []string) {
	for _, slice := range s.slices {
		for _, b := range slice.GetBackends() {
			addr, _ := netip.AddrFromSlice(b.GetAddress())
			if addr.Is4() != like.Is4() {
				continue
			}
			for _, target := range slice.GetPortSets()[b.GetPortSet()].GetPorts() {
				if target.GetName() != p.GetName() || target.GetProtocol() != p.GetProtocol() {
					continue
				}
				at := netip.AddrPortFrom(addr, uint16(target.GetPort())).String()
				if b.GetReady() {
					ready = append(ready, at)
				} else if b.GetServing() {
					serving = append(serving, at)
				}
			}
		}
	}
	return ready, serving
}
