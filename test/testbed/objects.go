// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Namespace is the Kubernetes namespace of a cluster's pods.
const Namespace = "default"

// Service describes a Kubernetes Service and its EndpointSlices.
type Service struct {
	// Namespace of the service; Namespace if empty.
	Namespace string
	// Name of the service.
	Name string
	// ClusterIPs, at most one a family.
	ClusterIPs []netip.Addr
	// ExternalIPs and LoadBalancerIPs, any number.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	// Ports of the service.
	Ports []Port
	// Endpoints that answer.
	Endpoints []Endpoint
	// Affinity is for how many seconds a client keeps its endpoint; 0 for not at
	// all.
	Affinity int32
}

// Port is a port of a Service.
type Port struct {
	// Name, may be empty if it is the only port.
	Name string
	// Protocol, TCP if empty.
	Protocol corev1.Protocol
	// Port of the service's addresses.
	Port uint16
	// Target is the port of the endpoints.
	Target uint16
	// NodePort at the nodes' addresses, 0 for none.
	NodePort uint16
}

// Endpoint is one endpoint, by its addresses of both families; an invalid
// address leaves the family out.
type Endpoint struct {
	IPv4, IPv6 netip.Addr
	// NodeName of the node it is on.
	NodeName string
	// PodName, empty for endpoints that are no pods.
	PodName string
	// Terminating: it shuts down, and serves still.
	Terminating bool
}

// Endpoint makes the pod one.
func (p *Pod) Endpoint() Endpoint {
	return Endpoint{IPv4: p.IPv4, IPv6: p.IPv6, NodeName: p.NodeName, PodName: p.Name}
}

// Endpoint makes the node one: a pod on the host network.
func (n *Node) Endpoint() Endpoint {
	return Endpoint{IPv4: n.IPv4, IPv6: n.IPv6, NodeName: n.Name}
}

// ip is the endpoint's address of the family.
func (e Endpoint) ip(family int) netip.Addr {
	if family == 6 {
		return e.IPv6
	}
	return e.IPv4
}

// Object is the node as a Kubernetes object.
func (n *Node) Object() *corev1.Node {
	return &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: types.UID("uid-" + n.Name)},
		Spec: corev1.NodeSpec{
			PodCIDR:  n.PodCIDRv4.String(),
			PodCIDRs: []string{n.PodCIDRv4.String(), n.PodCIDRv6.String()},
		},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: n.IPv4.String()},
			{Type: corev1.NodeInternalIP, Address: n.IPv6.String()},
			{Type: corev1.NodeHostName, Address: n.Name},
		}},
	}
}

// Object is the pod as a Kubernetes object.
func (p *Pod) Object() *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: p.Name, UID: types.UID("uid-" + p.Name)},
		Spec: corev1.PodSpec{
			NodeName:   p.NodeName,
			Containers: []corev1.Container{{Name: "probe", Image: "probe"}},
		},
		Status: corev1.PodStatus{
			Phase:  corev1.PodRunning,
			PodIP:  p.IPv4.String(),
			PodIPs: []corev1.PodIP{{IP: p.IPv4.String()}, {IP: p.IPv6.String()}},
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue},
			},
		},
	}
}

// Objects are the service as Kubernetes objects: the Service and one
// EndpointSlice a family.
func (s Service) Objects() []runtime.Object {
	objects := []runtime.Object{s.Object()}
	for _, family := range s.families() {
		objects = append(objects, s.Slice(family))
	}
	return objects
}

func (s Service) namespace() string {
	if s.Namespace == "" {
		return Namespace
	}
	return s.Namespace
}

// families are those of the service's cluster IPs.
func (s Service) families() []int {
	var families []int
	for _, addr := range s.ClusterIPs {
		families = append(families, familyOf(addr))
	}
	return families
}

// Object is the Service.
func (s Service) Object() *corev1.Service {
	object := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace(), Name: s.Name, UID: types.UID("uid-" + s.Name)},
	}
	spec := &object.Spec
	spec.Type = corev1.ServiceTypeClusterIP
	for _, addr := range s.ClusterIPs {
		spec.ClusterIPs = append(spec.ClusterIPs, addr.String())
		spec.IPFamilies = append(spec.IPFamilies, ipFamily(familyOf(addr)))
	}
	if len(spec.ClusterIPs) > 0 {
		spec.ClusterIP = spec.ClusterIPs[0]
	}
	policy := corev1.IPFamilyPolicySingleStack
	if len(s.ClusterIPs) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	spec.IPFamilyPolicy = &policy
	for _, port := range s.Ports {
		spec.Ports = append(spec.Ports, corev1.ServicePort{
			Name: port.Name, Protocol: port.protocol(), Port: int32(port.Port), NodePort: int32(port.NodePort),
			TargetPort: intstr.FromInt32(int32(port.Target)),
		})
		if port.NodePort != 0 {
			spec.Type = corev1.ServiceTypeNodePort
		}
	}
	if s.Affinity > 0 {
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
		spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &s.Affinity}}
	}
	for _, addr := range s.ExternalIPs {
		spec.ExternalIPs = append(spec.ExternalIPs, addr.String())
	}
	for _, addr := range s.LoadBalancerIPs {
		spec.Type = corev1.ServiceTypeLoadBalancer
		mode := corev1.LoadBalancerIPModeVIP
		object.Status.LoadBalancer.Ingress = append(object.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: addr.String(), IPMode: &mode})
	}
	return object
}

// Slice is the EndpointSlice of one family.
func (s Service) Slice(family int) *discoveryv1.EndpointSlice {
	name := s.Name + "-ipv4"
	kind := discoveryv1.AddressTypeIPv4
	if family == 6 {
		name, kind = s.Name+"-ipv6", discoveryv1.AddressTypeIPv6
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace(), Name: name, UID: types.UID("uid-" + name),
			Labels: map[string]string{discoveryv1.LabelServiceName: s.Name},
		},
		AddressType: kind,
	}
	for _, port := range s.Ports {
		protocol, target := port.protocol(), int32(port.Target)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &port.Name, Protocol: &protocol, Port: &target})
	}
	yes, no := true, false
	for _, endpoint := range s.Endpoints {
		addr := endpoint.ip(family)
		if !addr.IsValid() {
			continue
		}
		entry := discoveryv1.Endpoint{
			Addresses:  []string{addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &endpoint.NodeName,
		}
		if endpoint.Terminating {
			entry.Conditions.Ready, entry.Conditions.Terminating = &no, &yes
		}
		if endpoint.PodName != "" {
			entry.TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: s.namespace(), Name: endpoint.PodName}
		}
		slice.Endpoints = append(slice.Endpoints, entry)
	}
	return slice
}

func (p Port) protocol() corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func ipFamily(family int) corev1.IPFamily {
	if family == 6 {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}
