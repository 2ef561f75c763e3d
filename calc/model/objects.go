// SPDX-License-Identifier: Apache-2.0

package model

// Service is a Kubernetes Service.
type Service struct {
	Namespace string
	Name      string
	// Labels needs to hold only what TrimLabels keeps.
	Labels map[string]string
	// Created is metadata.creationTimestamp in seconds since 1970, 0 if
	// unknown. It decides which of two services holds what both claim.
	Created int64
	// Type is spec.type; empty means ClusterIP.
	Type string
	// ClusterIP is spec.clusterIP; used if ClusterIPs is empty.
	ClusterIP string
	// ClusterIPs is spec.clusterIPs.
	ClusterIPs []string
	// IPFamilies is spec.ipFamilies ("IPv4", "IPv6").
	IPFamilies []string
	// ExternalIPs is spec.externalIPs.
	ExternalIPs []string
	// Ports is spec.ports.
	Ports []ServicePort
	// Ingress is status.loadBalancer.ingress.
	Ingress []LoadBalancerIngress
	// SessionAffinity is spec.sessionAffinity ("ClientIP", "None"); empty means
	// None.
	SessionAffinity string
	// AffinityTimeout is spec.sessionAffinityConfig.clientIP.timeoutSeconds; nil
	// means DefaultAffinityTimeout.
	AffinityTimeout *int32
	// Unsupported is what the object asks for and the dataplane ignores: it
	// is reported, nothing is computed from it.
	Unsupported Unsupported
}

// DefaultAffinityTimeout is for how many seconds a client keeps its backend
// unless told otherwise.
const DefaultAffinityTimeout int32 = 10800

// Unsupported holds fields of a Service that are only reported. Sources need
// to keep only values that are reported.
type Unsupported struct {
	// SourceRanges tells that spec.loadBalancerSourceRanges has entries.
	SourceRanges bool
	// ExternalTrafficPolicy is spec.externalTrafficPolicy.
	ExternalTrafficPolicy string
	// InternalTrafficPolicy is spec.internalTrafficPolicy.
	InternalTrafficPolicy string
	// TrafficDistribution is spec.trafficDistribution.
	TrafficDistribution string
	// TopologyMode is the annotation AnnotationTopologyMode.
	TopologyMode string
}

// ServicePort is one of spec.ports of a Service.
type ServicePort struct {
	Name string
	// Protocol is "TCP", "UDP" or "SCTP"; empty means TCP.
	Protocol string
	Port     int32
	// NodePort is 0 if there is none.
	NodePort int32
	// TargetPort is targetPort if that is a number, 0 if not. Backends bring
	// their ports along; it is only checked.
	TargetPort int32
}

// LoadBalancerIngress is one of status.loadBalancer.ingress of a Service.
// Entries that have only a host name need not be kept, but keeping them keeps
// the indexes in problems right.
type LoadBalancerIngress struct {
	IP string
	// IPMode is "VIP" or "Proxy"; empty means VIP.
	IPMode string
}

// EndpointSlice is a Kubernetes EndpointSlice (discovery.k8s.io/v1).
type EndpointSlice struct {
	Namespace string
	Name      string
	// Labels needs to hold only what TrimLabels keeps.
	Labels map[string]string
	// AddressType is "IPv4", "IPv6" or "FQDN".
	AddressType string
	Ports       []EndpointPort
	Endpoints   []Endpoint
}

// EndpointPort is one of the ports of an EndpointSlice.
type EndpointPort struct {
	Name string
	// Protocol is "TCP", "UDP" or "SCTP"; empty means TCP.
	Protocol string
	// Port is the target port; nil means that there is none.
	Port *int32
}

// Endpoint is one of the endpoints of an EndpointSlice.
type Endpoint struct {
	Addresses []string
	// NodeName is nodeName, empty if nil.
	NodeName string
	// Zone is zone, empty if nil; then the node's zone is used.
	Zone string
	// The conditions; nil has the meaning that Kubernetes gives it: ready,
	// serving as ready, not terminating.
	Ready       *bool
	Serving     *bool
	Terminating *bool
}

// Node is a Kubernetes Node.
type Node struct {
	Name string
	// Labels needs to hold only what TrimLabels keeps.
	Labels map[string]string
	// PodCIDR is spec.podCIDR; used if PodCIDRs is empty.
	PodCIDR string
	// PodCIDRs is spec.podCIDRs.
	PodCIDRs []string
	// Addresses is status.addresses, in the object's order.
	Addresses []NodeAddress
}

// NodeAddress is one of status.addresses of a Node.
type NodeAddress struct {
	// Type is "InternalIP", "ExternalIP", "Hostname" and so on; only the
	// first two are used.
	Type    string
	Address string
}

// Pod is a Kubernetes Pod.
type Pod struct {
	Namespace string
	Name      string
	UID       string
	NodeName  string
	// HostNetwork is spec.hostNetwork.
	HostNetwork bool
	// Phase is status.phase.
	Phase string
	// PodIP is status.podIP; used if PodIPs is empty.
	PodIP string
	// PodIPs is status.podIPs.
	PodIPs []string
}

// Namespace is a Kubernetes Namespace.
type Namespace struct {
	Name string
}

// Settings is the configuration that changes what is computed. It is an
// object like the others, so that every calculator sees the same. There is
// one, named SettingsName; without it the defaults hold.
type Settings struct {
	Name string
	// NodePorts is the range from which the cluster hands out node ports; nil
	// means DefaultNodePorts.
	NodePorts *PortRange
}

// ConfigMap is the Kubernetes ConfigMap in which calculators announce where
// they are and whom agents are to trust. Sources hand over that one alone.
type ConfigMap struct {
	Namespace string
	Name      string
	// Calculators is data["calculators"]: an address a line.
	Calculators string
	// Authorities is data["ca.crt"]: certificates, PEM.
	Authorities string
}

// PortRange is an inclusive range of ports.
type PortRange struct {
	First int32
	Last  int32
}

// SettingsName is the name of the one Settings object.
const SettingsName = "default"

// DefaultNodePorts is what the API server hands out unless told otherwise.
var DefaultNodePorts = PortRange{First: 30000, Last: 32767}

// Key names the object.
func (s *Service) Key() Key { return Key{KindService, s.Namespace, s.Name} }

// Key names the object.
func (s *EndpointSlice) Key() Key { return Key{KindEndpointSlice, s.Namespace, s.Name} }

// Key names the object.
func (n *Node) Key() Key { return Key{KindNode, "", n.Name} }

// Key names the object.
func (p *Pod) Key() Key { return Key{KindPod, p.Namespace, p.Name} }

// Key names the object.
func (n *Namespace) Key() Key { return Key{KindNamespace, "", n.Name} }

// Key names the object.
func (s *Settings) Key() Key { return Key{KindSettings, "", s.Name} }

// Key names the object.
func (c *ConfigMap) Key() Key { return Key{KindConfigMap, c.Namespace, c.Name} }
