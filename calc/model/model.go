// SPDX-License-Identifier: Apache-2.0

// Package model holds the input of the calculation: the Kubernetes objects it
// reads, trimmed to the fields it uses. Addresses and other text that may be
// wrong stay text here, so that what is wrong can be reported with its field.
//
// Input is level-triggered. Whoever feeds it may repeat objects, delete what
// never existed and deliver in any order: what counts is the last state of
// every key.
package model

import "cmp"

// Kind is the kind of an object, as Kubernetes writes it.
type Kind string

// The kinds that the calculation reads.
const (
	KindService       Kind = "Service"
	KindEndpointSlice Kind = "EndpointSlice"
	KindNode          Kind = "Node"
	KindPod           Kind = "Pod"
	KindNamespace     Kind = "Namespace"
	KindSettings      Kind = "Settings"
	KindConfigMap     Kind = "ConfigMap"
)

// Kinds lists all kinds that the calculation reads.
func Kinds() []Kind {
	return []Kind{KindNamespace, KindNode, KindPod, KindService, KindEndpointSlice, KindSettings, KindConfigMap}
}

// Key names an object.
type Key struct {
	Kind      Kind
	Namespace string
	Name      string
}

// Compare orders keys by kind, namespace and name.
func (k Key) Compare(other Key) int {
	return cmp.Or(
		cmp.Compare(k.Kind, other.Kind),
		cmp.Compare(k.Namespace, other.Namespace),
		cmp.Compare(k.Name, other.Name))
}

// String gives "Kind namespace/name", or "Kind name" without a namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return string(k.Kind) + " " + k.Name
	}
	return string(k.Kind) + " " + k.Namespace + "/" + k.Name
}

// Object is any of the objects of this package. The calculation does not keep
// or change what it is given.
type Object interface {
	// Key names the object.
	Key() Key
}
