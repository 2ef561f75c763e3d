// SPDX-License-Identifier: Apache-2.0

package frontends

import (
	"fmt"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Build makes the Service resource's content from what the service holds, and
// tells what it claims in vain. The service must have been added.
func (c *Claims) Build(service *services.Service, backendSlices int) (*dataplanev1.Service, []problem.Problem) {
	problems := &problem.List{Object: model.Key{
		Kind: model.KindService, Namespace: service.Namespace, Name: service.Name}}
	content := &dataplanev1.Service{
		Namespace:     service.Namespace,
		Name:          service.Name,
		BackendSlices: uint32(backendSlices),
		Ports:         c.ports(service, problems),
	}
	if service.AffinityTimeout > 0 {
		content.SessionAffinity = &dataplanev1.SessionAffinity{TimeoutSeconds: service.AffinityTimeout}
	}
	for _, ip := range service.ClusterIPs {
		if holder := c.clusterIPs[ip.Addr].first; holder != service {
			problems.Add(ip.Field(), "%s is the cluster IP of service %s, which %s: not served until that one gives it up",
				ip.Addr, holder, seniority(holder, service))
			continue
		}
		content.ClusterIps = append(content.ClusterIps, ip.Addr.AsSlice())
	}
	for _, ip := range service.ExternalIPs {
		field := fmt.Sprintf("spec.externalIPs[%d]", ip.Index)
		if held := c.heldPorts(service, ip, field, problems); held != nil {
			content.ExternalIps = append(content.ExternalIps, held)
		}
	}
	for _, ip := range service.LoadBalancerIPs {
		if isExternal(service, ip) {
			continue // the same frontends once more
		}
		field := fmt.Sprintf("status.loadBalancer.ingress[%d].ip", ip.Index)
		if held := c.heldPorts(service, ip, field, problems); held != nil {
			content.LoadBalancerIps = append(content.LoadBalancerIps, held)
		}
	}
	return content, problems.Sorted()
}

// seniority says why the holder comes before the service.
func seniority(holder, service *services.Service) string {
	switch {
	case holder.Created == service.Created:
		return "comes first by namespace and name"
	case holder.Created == 0:
		return "comes first as it has no creation time"
	default:
		return "is older"
	}
}

func isExternal(service *services.Service, ip services.Address) bool {
	for _, external := range service.ExternalIPs {
		if external.Addr == ip.Addr {
			return true
		}
	}
	return false
}

func (c *Claims) ports(service *services.Service, problems *problem.List) []*dataplanev1.ServicePort {
	ports := make([]*dataplanev1.ServicePort, len(service.Ports))
	slab := make([]dataplanev1.ServicePort, len(service.Ports))
	for i := range service.Ports {
		port := &service.Ports[i]
		slab[i].Name = port.Name
		slab[i].Protocol = port.Protocol
		slab[i].Port = uint32(port.Port)
		if port.NodePort != 0 {
			holder := c.nodePorts[keyOf(port.Protocol, port.NodePort)].first
			if holder == service {
				slab[i].NodePort = uint32(port.NodePort)
			} else {
				problems.Add(fmt.Sprintf("spec.ports[%d].nodePort", port.Index),
					"%d/%s is held by service %s, which %s: not served at the nodes until that one gives it up",
					port.NodePort, services.ProtocolName(port.Protocol), holder, seniority(holder, service))
			}
		}
		ports[i] = &slab[i]
	}
	return ports
}

// heldPorts gives an external or load balancer address with the ports of it
// that the service holds, nil if there are none. Ports that the service holds
// already because the address is its own cluster IP are not repeated.
func (c *Claims) heldPorts(
	service *services.Service, ip services.Address, field string, problems *problem.List,
) *dataplanev1.ServiceAddress {
	var held []uint32
	owner := c.clusterIPs[ip.Addr].first
	for i := range service.Ports {
		port := &service.Ports[i]
		holder := c.addressHolder(ip.Addr, port)
		switch {
		case holder == service && owner != service:
			held = append(held, uint32(i))
		case holder == service:
		case holder == owner:
			problems.Add(field, "%s is the cluster IP of service %s, which has port %s: not served until that one gives it up",
				ip.Addr, holder, port)
		default:
			problems.Add(field, "%s port %s is held by service %s, which %s: not served until that one gives it up",
				ip.Addr, port, holder, seniority(holder, service))
		}
	}
	if held == nil {
		return nil
	}
	return &dataplanev1.ServiceAddress{Address: ip.Addr.AsSlice(), Ports: held}
}
