// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/calc/address"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// familySet is the set of families of a service.
type familySet struct{ ipv4, ipv6 bool }

func (f *familySet) add(family string) {
	f.ipv4 = f.ipv4 || family == "IPv4"
	f.ipv6 = f.ipv6 || family == "IPv6"
}

func (f familySet) has(addr netip.Addr) bool {
	if addr.Is4() {
		return f.ipv4
	}
	return f.ipv6
}

// parseClusterIPs gives the usable cluster IPs and the families in which the
// service is served: those it declares, or else those of its cluster IPs.
func parseClusterIPs(object *model.Service, problems *problem.List) ([]Address, familySet) {
	texts, single := object.ClusterIPs, false
	if len(texts) == 0 {
		texts, single = []string{object.ClusterIP}, true
	}
	var families familySet
	for i, family := range object.IPFamilies {
		if family != "IPv4" && family != "IPv6" {
			problems.Add(fmt.Sprintf("spec.ipFamilies[%d]", i), "%q is not an IP family: ignored", family)
			continue
		}
		families.add(family)
	}
	var (
		usable []Address
		found  familySet
	)
	for i, text := range texts {
		parsed := Address{Index: i}
		if single {
			parsed.Index = SingleClusterIP
		}
		addr, err := address.ParseUnicast(text)
		if err != nil {
			problems.Add(parsed.Field(), "%v: not served", err)
			continue
		}
		family := address.Family(addr)
		if i < len(object.IPFamilies) && object.IPFamilies[i] != family {
			problems.Add(parsed.Field(), "%s is an %s address where spec.ipFamilies[%d] says %q: not served",
				addr, family, i, object.IPFamilies[i])
			continue
		}
		if found.has(addr) {
			problems.Add(parsed.Field(), "%s is a second %s cluster IP: not served", addr, family)
			continue
		}
		found.add(family)
		parsed.Addr = addr
		usable = append(usable, parsed)
	}
	if families == (familySet{}) {
		families = found
	}
	if families == (familySet{}) {
		// Nothing tells the families: the other addresses are still good.
		families = familySet{ipv4: true, ipv6: true}
	}
	return usable, families
}

func parseExternalIPs(object *model.Service, families familySet, problems *problem.List) []Address {
	var usable []Address
	for i, text := range object.ExternalIPs {
		field := fmt.Sprintf("spec.externalIPs[%d]", i)
		if addr, ok := parseFrontend(field, text, families, problems); ok {
			usable = append(usable, Address{addr, i})
		}
	}
	return sortAddresses(usable)
}

func parseIngress(object *model.Service, families familySet, problems *problem.List) []Address {
	var usable []Address
	for i, ingress := range object.Ingress {
		field := fmt.Sprintf("status.loadBalancer.ingress[%d].ip", i)
		switch ingress.IPMode {
		case "", "VIP":
		case "Proxy":
			// Such a load balancer wants to see the traffic itself.
			continue
		default:
			problems.Add(fmt.Sprintf("status.loadBalancer.ingress[%d].ipMode", i),
				"%q is not a mode: the address is not served", ingress.IPMode)
			continue
		}
		if ingress.IP == "" {
			continue // only a host name
		}
		if addr, ok := parseFrontend(field, ingress.IP, families, problems); ok {
			usable = append(usable, Address{addr, i})
		}
	}
	return sortAddresses(usable)
}

func parseFrontend(field, text string, families familySet, problems *problem.List) (netip.Addr, bool) {
	addr, err := address.ParseUnicast(text)
	if err != nil {
		problems.Add(field, "%v: not served", err)
		return netip.Addr{}, false
	}
	if !families.has(addr) {
		problems.Add(field, "%s is an %s address, a family in which the service has no cluster IP: not served",
			addr, address.Family(addr))
		return netip.Addr{}, false
	}
	return addr, true
}

// sortAddresses sorts by address and keeps the first of equal ones.
func sortAddresses(addresses []Address) []Address {
	slices.SortStableFunc(addresses, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
	return slices.CompactFunc(addresses, func(a, b Address) bool { return a.Addr == b.Addr })
}
