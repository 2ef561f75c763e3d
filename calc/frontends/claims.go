// SPDX-License-Identifier: Apache-2.0

// Package frontends decides which service holds which frontend, where several
// claim the same, and makes the Service resource from what a service holds.
//
// A cluster IP is claimed as a whole, an external or load balancer address
// port by port, a node port for all nodes. The senior claimant holds: the
// older service, then the one first by namespace and name. A cluster IP's
// holder holds its ports against claims of the same address as an external
// one, whatever their age: an address that the cluster allocated cannot be
// taken over from outside.
package frontends

import (
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// portKey is a port of a protocol.
type portKey struct {
	port     uint16
	protocol uint8
}

// addressKey is an address and port of a protocol.
type addressKey struct {
	addr netip.Addr
	portKey
}

func keyOf(protocol dataplanev1.Protocol, port uint16) portKey {
	return portKey{port, uint8(protocol)}
}

// claimants are services that claim the same, most senior first. Nearly
// always there is one, so that one needs no list.
type claimants struct {
	first *services.Service
	rest  []*services.Service
}

func (c claimants) each(yield func(*services.Service)) {
	if c.first != nil {
		yield(c.first)
	}
	for _, service := range c.rest {
		yield(service)
	}
}

// add puts the service in its place. Adding what is there changes nothing.
func add[K comparable](index map[K]claimants, key K, service *services.Service) {
	c := index[key]
	switch {
	case c.first == nil:
		c.first = service
	case c.first == service:
		return
	default:
		if service.Compare(c.first) < 0 {
			c.first, service = service, c.first
		}
		if place, found := slices.BinarySearchFunc(c.rest, service, (*services.Service).Compare); !found {
			c.rest = slices.Insert(c.rest, place, service)
		}
	}
	index[key] = c
}

// remove takes the service out. Removing what is not there changes nothing.
func remove[K comparable](index map[K]claimants, key K, service *services.Service) {
	c := index[key]
	if c.first == service {
		if len(c.rest) == 0 {
			delete(index, key)
			return
		}
		c.first = c.rest[0]
		c.rest = slices.Delete(c.rest, 0, 1)
	} else if place := slices.Index(c.rest, service); place >= 0 {
		c.rest = slices.Delete(c.rest, place, place+1)
	}
	if len(c.rest) == 0 {
		c.rest = nil
	}
	if c.first != nil {
		index[key] = c
	}
}

// Claims knows who claims what. At most one version of a service may be in it.
type Claims struct {
	clusterIPs map[netip.Addr]claimants
	addresses  map[addressKey]claimants // external and load balancer addresses
	nodePorts  map[portKey]claimants
	affected   func(*services.Service)
}

// NewClaims makes an empty set of claims. The function is called for every
// service whose holdings a change may touch, that service itself included.
func NewClaims(affected func(*services.Service)) *Claims {
	return &Claims{
		clusterIPs: map[netip.Addr]claimants{},
		addresses:  map[addressKey]claimants{},
		nodePorts:  map[portKey]claimants{},
		affected:   affected,
	}
}

// Len gives the number of things that are claimed.
func (c *Claims) Len() int { return len(c.clusterIPs) + len(c.addresses) + len(c.nodePorts) }

// Add enters a service's claims.
func (c *Claims) Add(service *services.Service) {
	for _, ip := range service.ClusterIPs {
		add(c.clusterIPs, ip.Addr, service)
	}
	for key := range externalKeys(service) {
		add(c.addresses, key, service)
	}
	for i := range service.Ports {
		if port := &service.Ports[i]; port.NodePort != 0 {
			add(c.nodePorts, keyOf(port.Protocol, port.NodePort), service)
		}
	}
	c.touch(service)
}

// Remove withdraws a service's claims.
func (c *Claims) Remove(service *services.Service) {
	c.touch(service)
	for _, ip := range service.ClusterIPs {
		remove(c.clusterIPs, ip.Addr, service)
	}
	for key := range externalKeys(service) {
		remove(c.addresses, key, service)
	}
	for i := range service.Ports {
		if port := &service.Ports[i]; port.NodePort != 0 {
			remove(c.nodePorts, keyOf(port.Protocol, port.NodePort), service)
		}
	}
}

// externalKeys gives what a service claims outside the cluster; what it
// claims twice comes twice.
func externalKeys(service *services.Service) func(func(addressKey) bool) {
	return func(yield func(addressKey) bool) {
		for _, list := range [...][]services.Address{service.ExternalIPs, service.LoadBalancerIPs} {
			for _, ip := range list {
				for i := range service.Ports {
					key := keyOf(service.Ports[i].Protocol, service.Ports[i].Port)
					if !yield(addressKey{ip.Addr, key}) {
						return
					}
				}
			}
		}
	}
}

// touch reports all services that share a claim with the one given.
func (c *Claims) touch(service *services.Service) {
	c.affected(service)
	for _, ip := range service.ClusterIPs {
		// Whoever of the claimants holds the address takes its ports from
		// those who claim them as external.
		c.clusterIPs[ip.Addr].each(func(claimant *services.Service) {
			c.affected(claimant)
			for i := range claimant.Ports {
				key := keyOf(claimant.Ports[i].Protocol, claimant.Ports[i].Port)
				c.addresses[addressKey{ip.Addr, key}].each(c.affected)
			}
		})
	}
	for key := range externalKeys(service) {
		c.addresses[key].each(c.affected)
	}
	for i := range service.Ports {
		if port := &service.Ports[i]; port.NodePort != 0 {
			c.nodePorts[keyOf(port.Protocol, port.NodePort)].each(c.affected)
		}
	}
}

// addressHolder gives the service that holds a port of an address that some
// service claims as external.
func (c *Claims) addressHolder(addr netip.Addr, port *services.Port) *services.Service {
	if owner := c.clusterIPs[addr].first; owner != nil && owner.PortIndex(port.Protocol, port.Port) >= 0 {
		return owner
	}
	return c.addresses[addressKey{addr, keyOf(port.Protocol, port.Port)}].first
}
