// SPDX-License-Identifier: Apache-2.0

// Package services reads one Service object: which services the dataplane
// serves at all, and which of an object's addresses and ports can be used. It
// looks at nothing but the object; what several services claim is package
// frontends' matter.
package services

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Service is what is usable of a Service object. It never changes.
type Service struct {
	Namespace string
	Name      string
	// Created orders services that claim the same.
	Created int64
	// ClusterIPs holds at most one address a family, in the object's order.
	ClusterIPs []Address
	// ExternalIPs is sorted by address and has no duplicates.
	ExternalIPs []Address
	// LoadBalancerIPs is sorted by address and has no duplicates; only
	// addresses that the dataplane is to serve are in it.
	LoadBalancerIPs []Address
	// Ports is sorted by name, protocol and number. No two have the same name
	// and protocol, the same number and protocol, or the same node port and
	// protocol.
	Ports []Port
	// AffinityTimeout is for how many seconds a client keeps its backend, 0 if
	// every connection chooses anew.
	AffinityTimeout uint32
}

// Address is an address of a service.
type Address struct {
	Addr netip.Addr
	// Index of the address in its field of the object; SingleClusterIP for
	// spec.clusterIP.
	Index int
}

// SingleClusterIP is the index of a cluster IP that is not in a list.
const SingleClusterIP = -1

// Port is a port of a service.
type Port struct {
	Name     string
	Protocol dataplanev1.Protocol
	Port     uint16
	// NodePort is 0 if there is none.
	NodePort uint16
	// Index of the port in spec.ports of the object.
	Index int
}

// String gives "80/TCP".
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Port, ProtocolName(p.Protocol)) }

// ProtocolName gives the name that Kubernetes has for a protocol.
func ProtocolName(protocol dataplanev1.Protocol) string {
	return strings.TrimPrefix(protocol.String(), "PROTOCOL_")
}

// Field gives the path of a cluster IP's field.
func (a Address) Field() string {
	if a.Index == SingleClusterIP {
		return "spec.clusterIP"
	}
	return fmt.Sprintf("spec.clusterIPs[%d]", a.Index)
}

// String gives "namespace/name".
func (s *Service) String() string { return s.Namespace + "/" + s.Name }

// Compare orders services by seniority: of two that claim the same, the one
// that comes first holds it.
func (s *Service) Compare(other *Service) int {
	return cmp.Or(cmp.Compare(s.Created, other.Created),
		cmp.Compare(s.Namespace, other.Namespace), cmp.Compare(s.Name, other.Name))
}

// PortIndex finds the port of that protocol and number, -1 if there is none.
func (s *Service) PortIndex(protocol dataplanev1.Protocol, port uint16) int {
	for i := range s.Ports {
		if s.Ports[i].Port == port && s.Ports[i].Protocol == protocol {
			return i
		}
	}
	return -1
}

// Parse reads a Service object. The service is nil if the object has no
// frontends that are ours: headless and ExternalName services and those that
// are left to another proxy.
func Parse(object *model.Service) (*Service, []problem.Problem) {
	if object.Type == "ExternalName" || model.LeftToOthers(object.Labels) || headless(object) {
		return nil, nil
	}
	problems := &problem.List{Object: object.Key()}
	switch object.Type {
	case "", "ClusterIP", "NodePort", "LoadBalancer":
	default:
		problems.Add("spec.type", "%q is not a type of service: treated as ClusterIP", object.Type)
	}
	if object.ClusterIP == "" && len(object.ClusterIPs) == 0 {
		problems.Add("spec.clusterIP", "no cluster IP is given: the service is not served")
		return nil, problems.Sorted()
	}
	service := &Service{Namespace: object.Namespace, Name: object.Name, Created: object.Created}
	var families familySet
	service.ClusterIPs, families = parseClusterIPs(object, problems)
	service.ExternalIPs = parseExternalIPs(object, families, problems)
	service.LoadBalancerIPs = parseIngress(object, families, problems)
	service.Ports = parsePorts(object, problems)
	service.AffinityTimeout = parseAffinity(object, problems)
	reportUnsupported(&object.Unsupported, problems)
	return service, problems.Sorted()
}

// reportUnsupported tells what an object asks for in vain.
func reportUnsupported(object *model.Unsupported, problems *problem.List) {
	report := func(field, value, consequence string) {
		problems.Add(field, "%s is not supported yet: ignored; %s", value, consequence)
	}
	if object.SourceRanges {
		report("spec.loadBalancerSourceRanges", "a list of sources", "every client gets in")
	}
	const local = "Local"
	if object.ExternalTrafficPolicy == local {
		report("spec.externalTrafficPolicy", local, "backends of all nodes are used, and those of other nodes do not see the client's address")
	}
	if object.InternalTrafficPolicy == local {
		report("spec.internalTrafficPolicy", local, "backends of all nodes are used")
	}
	const anywhere = "backends of all zones are used"
	if object.TrafficDistribution != "" {
		report("spec.trafficDistribution", object.TrafficDistribution, anywhere)
	}
	if strings.EqualFold(object.TopologyMode, "Auto") {
		report("metadata.annotations["+model.AnnotationTopologyMode+"]", object.TopologyMode, anywhere)
	}
}

// headless tells that a service has explicitly no cluster IP.
func headless(object *model.Service) bool {
	const none = "None"
	if len(object.ClusterIPs) > 0 {
		return object.ClusterIPs[0] == none
	}
	return object.ClusterIP == none
}
