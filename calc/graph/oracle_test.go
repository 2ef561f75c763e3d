// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// The oracle says what a cluster's services, nodes and endpoints amount to,
// written down in the plainest way: no indexes, no chunks, no packages of the
// calculation. Its lines are compared with those read off the resources.

func flatten(t testing.TB, g *graph.Graph) []string {
	t.Helper()
	var lines []string
	backends := map[string][]*dataplanev1.BackendSlice{}
	for _, a := range g.Audiences() {
		for _, resource := range g.Resources(a) {
			if slice := resource.GetBackendSlice(); slice != nil {
				name := slice.GetNamespace() + "/" + slice.GetName()
				backends[name] = append(backends[name], slice)
			}
		}
	}
	for _, a := range g.Audiences() {
		for _, resource := range g.Resources(a) {
			switch {
			case resource.GetService() != nil:
				service := resource.GetService()
				name := service.GetNamespace() + "/" + service.GetName()
				if got, want := len(backends[name]), int(service.GetBackendSlices()); got != want {
					t.Errorf("service %s has %d backend slices and says %d", name, got, want)
				}
				lines = append(lines, flattenService(t, service, backends[name])...)
				delete(backends, name)
			case resource.GetEndpoint() != nil:
				endpoint := resource.GetEndpoint()
				line := fmt.Sprintf("endpoint %s %s/%s %s", a, endpoint.GetNamespace(), endpoint.GetName(), endpoint.GetUid())
				for _, addr := range endpoint.GetAddresses() {
					line += " " + addrText(t, addr)
				}
				lines = append(lines, line)
			case resource.GetCalculators() != nil:
				for _, address := range resource.GetCalculators().GetAddresses() {
					lines = append(lines, fmt.Sprintf("calculator %s %s %s", a, resource.GetName().GetKey(), address))
				}
			case resource.GetNode() != nil:
				lines = append(lines, fmt.Sprintf("node %s zone %q", resource.GetNode().GetName(), resource.GetNode().GetZone()))
			}
		}
	}
	for name := range backends {
		t.Errorf("%s has backend slices and is no service", name)
	}
	slices.Sort(lines)
	return lines
}

func addrText(t testing.TB, raw []byte) string {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		t.Errorf("%x is no address", raw)
	}
	return addr.String()
}

func flattenService(t testing.TB, service *dataplanev1.Service, chunks []*dataplanev1.BackendSlice) []string {
	var lines []string
	frontend := func(kind, addr string, port uint32, of *dataplanev1.ServicePort) {
		lines = append(lines, fmt.Sprintf("frontend %s %d %s:%d = %s/%s:%s%s",
			kind, of.GetProtocol(), addr, port, service.GetNamespace(), service.GetName(), of.GetName(),
			affinity(service.GetSessionAffinity().GetTimeoutSeconds())))
	}
	for _, port := range service.GetPorts() {
		for _, ip := range service.GetClusterIps() {
			frontend("cluster", addrText(t, ip), port.GetPort(), port)
		}
		if port.GetNodePort() != 0 {
			frontend("node", "*", port.GetNodePort(), port)
		}
	}
	for _, ip := range service.GetExternalIps() {
		for _, index := range ip.GetPorts() {
			port := service.GetPorts()[index]
			frontend("external", addrText(t, ip.GetAddress()), port.GetPort(), port)
		}
	}
	for _, ip := range service.GetLoadBalancerIps() {
		for _, index := range ip.GetPorts() {
			port := service.GetPorts()[index]
			frontend("external", addrText(t, ip.GetAddress()), port.GetPort(), port)
		}
	}
	numbers := map[uint32]bool{}
	for _, chunk := range chunks {
		if numbers[chunk.GetChunk()] || chunk.GetChunk() >= service.GetBackendSlices() {
			t.Errorf("%s/%s: chunk %d is there twice or too many", service.GetNamespace(), service.GetName(), chunk.GetChunk())
		}
		numbers[chunk.GetChunk()] = true
		for _, backend := range chunk.GetBackends() {
			for _, port := range chunk.GetPortSets()[backend.GetPortSet()].GetPorts() {
				lines = append(lines, fmt.Sprintf("backend %s/%s:%s %d %s:%d node %q zone %q %s",
					service.GetNamespace(), service.GetName(), port.GetName(), port.GetProtocol(),
					addrText(t, backend.GetAddress()), port.GetPort(), backend.GetNode(), backend.GetZone(),
					conditions(backend.GetReady(), backend.GetServing(), backend.GetTerminating())))
			}
		}
	}
	return lines
}

func affinity(seconds uint32) string {
	if seconds == 0 {
		return ""
	}
	return fmt.Sprintf(" affinity %ds", seconds)
}

func conditions(ready, serving, terminating bool) string {
	return fmt.Sprintf("ready=%t serving=%t terminating=%t", ready, serving, terminating)
}

// The rest computes the same lines from the objects.

func oracle(w world) []string {
	var (
		lines    []string
		services []*model.Service
	)
	for _, key := range w.keys() {
		switch object := w[key].(type) {
		case *model.Service:
			services = append(services, object)
		case *model.Pod:
			lines = append(lines, oraclePod(object)...)
		case *model.ConfigMap:
			lines = append(lines, oracleCalculators(object)...)
		case *model.Node:
			lines = append(lines, fmt.Sprintf("node %s zone %q", object.Name, object.Labels[model.LabelZone]))
		}
	}
	// The keys are sorted by namespace and name already.
	slices.SortStableFunc(services, func(a, b *model.Service) int { return int(a.Created - b.Created) })
	services = slices.DeleteFunc(services, func(s *model.Service) bool { return !oracleServed(s) })
	lines = append(lines, oracleFrontends(services)...)
	for _, service := range services {
		lines = append(lines, oracleBackends(w, service)...)
	}
	slices.Sort(lines)
	return lines
}

func goodAddr(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		return addr, false
	}
	return addr, true
}

func oracleCalculators(object *model.ConfigMap) []string {
	var lines []string
	for _, address := range []string{"10.0.0.1:7700", "[fd00::1]:7700", "calc.example:1"} {
		if slices.Contains(strings.Split(object.Calculators, "\n"), address) {
			lines = append(lines, fmt.Sprintf("calculator all %s/%s %s", object.Namespace, object.Name, address))
		}
	}
	return lines
}

func oraclePod(pod *model.Pod) []string {
	if pod.NodeName == "" || pod.HostNetwork || pod.Phase == "Succeeded" || pod.Phase == "Failed" {
		return nil
	}
	var addrs []netip.Addr
	for _, text := range pod.PodIPs {
		if addr, ok := goodAddr(text); ok && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	line := fmt.Sprintf("endpoint %s %s/%s %s", audience.Node(pod.NodeName), pod.Namespace, pod.Name, pod.UID)
	for _, addr := range addrs {
		line += " " + addr.String()
	}
	return []string{line}
}

func oracleServed(s *model.Service) bool {
	if s.Type == "ExternalName" || len(s.ClusterIPs) == 0 || s.ClusterIPs[0] == "None" {
		return false
	}
	_, other := s.Labels[model.LabelServiceProxyName]
	_, headless := s.Labels[model.LabelHeadless]
	return !other && !headless
}

func oracleProtocol(text string) (int, bool) {
	number, ok := map[string]int{"": 6, "TCP": 6, "UDP": 17}[text]
	return number, ok
}

func oraclePorts(s *model.Service) []model.ServicePort {
	var ports []model.ServicePort
	for _, port := range s.Ports {
		number, ok := oracleProtocol(port.Protocol)
		if !ok || port.Port < 1 || port.Port > 65535 {
			continue
		}
		for _, other := range ports {
			if same, _ := oracleProtocol(other.Protocol); same == number {
				ok = ok && other.Name != port.Name && other.Port != port.Port
				if other.NodePort == port.NodePort {
					port.NodePort = 0
				}
			}
		}
		if port.NodePort < 0 || port.NodePort > 65535 {
			port.NodePort = 0
		}
		if ok {
			ports = append(ports, port)
		}
	}
	return ports
}

func oracleFrontends(services []*model.Service) []string {
	var lines []string
	cluster := map[netip.Addr]*model.Service{}
	taken := map[string]*model.Service{} // protocol address:port
	emit := func(kind, socket string, port model.ServicePort, s *model.Service) {
		protocol, _ := oracleProtocol(port.Protocol)
		lines = append(lines, fmt.Sprintf("frontend %s %d %s = %s/%s:%s%s", kind, protocol, socket, s.Namespace, s.Name, port.Name,
			affinity(oracleAffinity(s))))
	}
	socketOf := func(addr netip.Addr, port int32) string { return addr.String() + ":" + fmt.Sprint(port) }
	for _, s := range services {
		var own []netip.Addr
		for _, text := range s.ClusterIPs {
			addr, ok := goodAddr(text)
			second := slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Is4() == addr.Is4() })
			if !ok || second {
				continue
			}
			own = append(own, addr)
			if cluster[addr] != nil {
				continue
			}
			cluster[addr] = s
			for _, port := range oraclePorts(s) {
				protocol, _ := oracleProtocol(port.Protocol)
				emit("cluster", socketOf(addr, port.Port), port, s)
				taken[fmt.Sprint(protocol, socketOf(addr, port.Port))] = s
			}
		}
	}
	for _, s := range services {
		var texts []string
		texts = append(texts, s.ExternalIPs...)
		for _, ingress := range s.Ingress {
			if ingress.IPMode == "" || ingress.IPMode == "VIP" {
				texts = append(texts, ingress.IP)
			}
		}
		for _, text := range texts {
			addr, ok := goodAddr(text)
			if !ok || !oracleFamily(s, addr) {
				continue
			}
			for _, port := range oraclePorts(s) {
				protocol, _ := oracleProtocol(port.Protocol)
				key := fmt.Sprint(protocol, socketOf(addr, port.Port))
				if taken[key] == nil {
					taken[key] = s
					emit("external", socketOf(addr, port.Port), port, s)
				}
			}
		}
		for _, port := range oraclePorts(s) {
			protocol, _ := oracleProtocol(port.Protocol)
			key := fmt.Sprint(protocol, "*", port.NodePort)
			if port.NodePort != 0 && taken[key] == nil {
				taken[key] = s
				emit("node", socketOf2(port.NodePort), port, s)
			}
		}
	}
	return lines
}

func oracleAffinity(s *model.Service) uint32 {
	switch {
	case s.SessionAffinity != "ClientIP":
		return 0
	case s.AffinityTimeout == nil || *s.AffinityTimeout <= 0 || *s.AffinityTimeout > 24*60*60:
		return 3 * 60 * 60
	}
	return uint32(*s.AffinityTimeout)
}

func socketOf2(nodePort int32) string { return "*:" + fmt.Sprint(nodePort) }

// oracleFamily tells whether a service is served in the address's family. No
// world of these tests has spec.ipFamilies; tables cover them.
func oracleFamily(s *model.Service, addr netip.Addr) bool {
	some := false
	for _, text := range s.ClusterIPs {
		if ip, ok := goodAddr(text); ok {
			some = true
			if ip.Is4() == addr.Is4() {
				return true
			}
		}
	}
	return !some
}

func oracleBackends(w world, s *model.Service) []string {
	best := map[string]string{} // what answers for which port -> conditions
	rank := map[string]string{}
	for _, key := range w.keys() {
		slice, ok := w[key].(*model.EndpointSlice)
		if !ok || slice.Namespace != s.Namespace || slice.Labels[model.LabelServiceName] != s.Name {
			continue
		}
		_, other := slice.Labels[model.LabelServiceProxyName]
		_, headless := slice.Labels[model.LabelHeadless]
		if other || headless {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			addr, ok := oracleEndpointAddr(slice, endpoint)
			if !ok {
				continue
			}
			ready := endpoint.Ready == nil || *endpoint.Ready
			serving := endpoint.Serving == nil || *endpoint.Serving
			terminating := endpoint.Terminating != nil && *endpoint.Terminating
			zone := endpoint.Zone
			if node, ok := w[model.Key{Kind: model.KindNode, Name: endpoint.NodeName}].(*model.Node); ok && zone == "" {
				zone = node.Labels[model.LabelZone]
			}
			line := ""
			if ready || serving && terminating {
				line = fmt.Sprintf("node %q zone %q %s", endpoint.NodeName, zone, conditions(ready, serving, terminating))
			}
			order := fmt.Sprintf("%t %t %t", terminating, !ready, !serving)
			// Among equals the later name is as good as any, if it is
			// always the same.
			order += " " + invert(endpoint.NodeName) + " " + invert(endpoint.Zone)
			for _, name := range oracleTargets(slice) {
				target := fmt.Sprintf("backend %s/%s:%s", s.Namespace, s.Name, strings.ReplaceAll(name, "ADDR", addr.String()))
				if known, ok := rank[target]; !ok || order < known {
					rank[target], best[target] = order, line
				}
			}
		}
	}
	var lines []string
	for target, line := range best {
		if line != "" {
			lines = append(lines, target+" "+line)
		}
	}
	return lines
}

// invert makes later strings sort first.
func invert(text string) string {
	inverted := []byte(text)
	for i := range inverted {
		inverted[i] = ^inverted[i]
	}
	return string(append(inverted, 0xff))
}

func oracleEndpointAddr(slice *model.EndpointSlice, endpoint model.Endpoint) (netip.Addr, bool) {
	for _, text := range endpoint.Addresses {
		if addr, ok := goodAddr(text); ok && addr.Is4() == (slice.AddressType == "IPv4") {
			return addr, slice.AddressType == "IPv4" || slice.AddressType == "IPv6"
		}
	}
	return netip.Addr{}, false
}

// oracleTargets gives "name protocol ADDR:port" for each usable port.
func oracleTargets(slice *model.EndpointSlice) []string {
	var targets []string
	seen := map[string]bool{}
	for _, port := range slice.Ports {
		protocol, ok := oracleProtocol(port.Protocol)
		if !ok || port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
			continue
		}
		name := fmt.Sprintf("%s %d", port.Name, protocol)
		if !seen[name] {
			seen[name] = true
			targets = append(targets, fmt.Sprintf("%s ADDR:%d", name, *port.Port))
		}
	}
	return targets
}
