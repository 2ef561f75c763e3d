// SPDX-License-Identifier: Apache-2.0

package model

// The labels that the calculation reads.
const (
	// LabelServiceName, on an EndpointSlice, names the Service it belongs to.
	LabelServiceName = "kubernetes.io/service-name"
	// LabelServiceProxyName, on a Service or EndpointSlice, gives it to
	// another service proxy, whatever its value.
	LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	// LabelHeadless, on a Service or EndpointSlice, says that no service proxy
	// has to do with it, whatever its value.
	LabelHeadless = "service.kubernetes.io/headless"
	// LabelZone, on a Node, is its topology zone.
	LabelZone = "topology.kubernetes.io/zone"
)

// AnnotationTopologyMode, on a Service, asks for backends near the client.
const AnnotationTopologyMode = "service.kubernetes.io/topology-mode"

// TrimLabels gives the labels that the calculation reads, nil if there are
// none. Sources use it to keep their caches small.
func TrimLabels(labels map[string]string) map[string]string {
	var kept map[string]string
	for _, label := range [...]string{LabelServiceName, LabelServiceProxyName, LabelHeadless, LabelZone} {
		if value, ok := labels[label]; ok {
			if kept == nil {
				kept = make(map[string]string, 1)
			}
			kept[label] = value
		}
	}
	return kept
}

// LeftToOthers tells that the labels of a Service or EndpointSlice take it
// out of the hands of the service proxy.
func LeftToOthers(labels map[string]string) bool {
	_, named := labels[LabelServiceProxyName]
	_, headless := labels[LabelHeadless]
	return named || headless
}
