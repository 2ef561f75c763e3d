// SPDX-License-Identifier: Apache-2.0

// Package convert turns objects of the Kubernetes API into the calculation's
// model, which keeps only what is used.
package convert

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/proto/announcement"
)

// Object converts an object of one of the API types that are read.
func Object(object metav1.Object) (model.Object, error) {
	switch o := object.(type) {
	case *corev1.Service:
		return service(o), nil
	case *discoveryv1.EndpointSlice:
		return endpointSlice(o), nil
	case *corev1.Node:
		return node(o), nil
	case *corev1.Pod:
		return pod(o), nil
	case *corev1.Namespace:
		return &model.Namespace{Name: own(o.Name)}, nil
	case *corev1.ConfigMap:
		return &model.ConfigMap{Namespace: own(o.Namespace), Name: own(o.Name),
			Calculators: own(o.Data[announcement.CalculatorsKey]), Authorities: own(o.Data[announcement.AuthoritiesKey])}, nil
	default:
		return nil, fmt.Errorf("objects of type %T are not read", object)
	}
}

// LastChange returns the time that the annotation
// endpoints.kubernetes.io/last-change-trigger-time tells, which is when a
// Service or Pod changed so that an EndpointSlice had to; zero if there is no
// such annotation.
func LastChange(object metav1.Object) time.Time {
	annotation, ok := object.GetAnnotations()[corev1.EndpointsLastChangeTriggerTime]
	if !ok {
		return time.Time{}
	}
	changed, err := time.Parse(time.RFC3339Nano, annotation)
	if err != nil {
		return time.Time{}
	}
	return changed
}

// own copies a string. Decoded objects may share one large buffer among all
// their strings, which a single kept one would keep alive.
func own(s string) string { return strings.Clone(s) }

func ownAll(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	owned := make([]string, len(list))
	for i, s := range list {
		owned[i] = own(s)
	}
	return owned
}

func ownLabels(labels map[string]string) map[string]string {
	kept := model.TrimLabels(labels)
	for label, value := range kept {
		kept[label] = own(value)
	}
	return kept
}

func deref[T any](pointer *T) T {
	var zero T
	if pointer == nil {
		return zero
	}
	return *pointer
}

func copyOf[T any](pointer *T) *T {
	if pointer == nil {
		return nil
	}
	value := *pointer
	return &value
}

func service(o *corev1.Service) *model.Service {
	s := &model.Service{
		Namespace:   own(o.Namespace),
		Name:        own(o.Name),
		Labels:      ownLabels(o.Labels),
		Type:        own(string(o.Spec.Type)),
		ClusterIP:   own(o.Spec.ClusterIP),
		ClusterIPs:  ownAll(o.Spec.ClusterIPs),
		ExternalIPs: ownAll(o.Spec.ExternalIPs),

		SessionAffinity: own(string(o.Spec.SessionAffinity)),
	}
	if c := o.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil {
		s.AffinityTimeout = copyOf(c.ClientIP.TimeoutSeconds)
	}
	if !o.CreationTimestamp.IsZero() {
		s.Created = o.CreationTimestamp.Unix()
	}
	for _, family := range o.Spec.IPFamilies {
		s.IPFamilies = append(s.IPFamilies, own(string(family)))
	}
	for _, port := range o.Spec.Ports {
		s.Ports = append(s.Ports, model.ServicePort{Name: own(port.Name), Protocol: own(string(port.Protocol)), Port: port.Port, NodePort: port.NodePort,
			TargetPort: targetPort(port.TargetPort)})
	}
	for _, ingress := range o.Status.LoadBalancer.Ingress {
		s.Ingress = append(s.Ingress, model.LoadBalancerIngress{IP: own(ingress.IP), IPMode: own(string(deref(ingress.IPMode)))})
	}
	s.Unsupported = unsupported(o)
	return s
}

// targetPort gives a numeric target port; named ones are other components'
// matter.
func targetPort(port intstr.IntOrString) int32 {
	if port.Type != intstr.Int {
		return 0
	}
	return port.IntVal
}

func unsupported(o *corev1.Service) model.Unsupported {
	return model.Unsupported{
		SourceRanges:          len(o.Spec.LoadBalancerSourceRanges) > 0,
		ExternalTrafficPolicy: own(string(o.Spec.ExternalTrafficPolicy)),
		InternalTrafficPolicy: own(string(deref(o.Spec.InternalTrafficPolicy))),
		TrafficDistribution:   own(deref(o.Spec.TrafficDistribution)),
		TopologyMode:          own(o.Annotations[model.AnnotationTopologyMode]),
	}
}

func endpointSlice(o *discoveryv1.EndpointSlice) *model.EndpointSlice {
	s := &model.EndpointSlice{
		Namespace:   own(o.Namespace),
		Name:        own(o.Name),
		Labels:      ownLabels(o.Labels),
		AddressType: own(string(o.AddressType)),
	}
	for _, port := range o.Ports {
		s.Ports = append(s.Ports, model.EndpointPort{Name: own(deref(port.Name)), Protocol: own(string(deref(port.Protocol))), Port: copyOf(port.Port)})
	}
	for i := range o.Endpoints {
		endpoint := &o.Endpoints[i]
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Addresses:   ownAll(endpoint.Addresses),
			NodeName:    own(deref(endpoint.NodeName)),
			Zone:        own(deref(endpoint.Zone)),
			Ready:       copyOf(endpoint.Conditions.Ready),
			Serving:     copyOf(endpoint.Conditions.Serving),
			Terminating: copyOf(endpoint.Conditions.Terminating),
		})
	}
	return s
}

func node(o *corev1.Node) *model.Node {
	n := &model.Node{
		Name:     own(o.Name),
		Labels:   ownLabels(o.Labels),
		PodCIDR:  own(o.Spec.PodCIDR),
		PodCIDRs: ownAll(o.Spec.PodCIDRs),
	}
	for _, address := range o.Status.Addresses {
		n.Addresses = append(n.Addresses, model.NodeAddress{Type: own(string(address.Type)), Address: own(address.Address)})
	}
	return n
}

// uidOf returns the UID by which the pod's node knows it. A static pod's is made by
// the kubelet; the object in the API server is a mirror with another.
func uidOf(o *corev1.Pod) string {
	if uid := o.Annotations[corev1.MirrorPodAnnotationKey]; uid != "" {
		return uid
	}
	return string(o.UID)
}

func pod(o *corev1.Pod) *model.Pod {
	p := &model.Pod{
		Namespace:   own(o.Namespace),
		Name:        own(o.Name),
		UID:         own(uidOf(o)),
		NodeName:    own(o.Spec.NodeName),
		HostNetwork: o.Spec.HostNetwork,
		Phase:       own(string(o.Status.Phase)),
		PodIP:       own(o.Status.PodIP),
	}
	for _, address := range o.Status.PodIPs {
		p.PodIPs = append(p.PodIPs, own(address.IP))
	}
	return p
}
