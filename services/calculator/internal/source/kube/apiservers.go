// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// apiServers keeps the Service default/kubernetes from losing its last backend.
//
// Its EndpointSlices have the API servers, which write them themselves: one that
// goes takes itself out, and if it was the only one that is listed, or if somebody
// else empties or deletes a slice, nothing is left until one comes back. It
// would come back to a cluster whose pods cannot reach it, some of which may be
// needed for it to come back. An address that does not answer harms nobody. So,
// of each family, what was known last stays in force until there is a backend
// again.
//
// It is used by the store's one goroutine.
type apiServers struct {
	// read is what the API server has, given is what was handed over.
	read, given map[model.Key]*model.EndpointSlice
}

func newAPIServers() *apiServers {
	return &apiServers{read: map[model.Key]*model.EndpointSlice{}, given: map[model.Key]*model.EndpointSlice{}}
}

// ofAPIServers tells whether an object is a slice of the Service
// default/kubernetes.
func ofAPIServers(object model.Object) (*model.EndpointSlice, bool) {
	slice, ok := object.(*model.EndpointSlice)
	return slice, ok && slice.Namespace == metav1.NamespaceDefault && slice.Labels[model.LabelServiceName] == "kubernetes"
}

// change returns what is to be handed over in place of changes that were read.
func (a *apiServers) change(read []source.Change) []source.Change {
	concerned := func(c source.Change) bool {
		_, is := ofAPIServers(c.Object)
		_, was := a.read[c.Key]
		return is || was
	}
	if a == nil || !slices.ContainsFunc(read, concerned) {
		return read
	}
	out := make([]source.Change, 0, len(read)+len(a.given))
	changed := map[model.Key]source.Change{}
	for _, c := range read {
		if !concerned(c) {
			out = append(out, c)
			continue
		}
		changed[c.Key] = c
		if slice, is := ofAPIServers(c.Object); is {
			a.read[c.Key] = slice
			continue
		}
		delete(a.read, c.Key)
		if c.Object != nil { // it is of another service now
			delete(a.given, c.Key)
			out = append(out, c)
		}
	}
	wanted := a.wanted()
	for key := range a.given {
		if wanted[key] == nil {
			out = append(out, source.Change{Key: key})
		}
	}
	for key, slice := range wanted {
		if c, ok := changed[key]; ok && c.Object == slice {
			out = append(out, c) // with the time of what led to it
		} else if a.given[key] != slice {
			out = append(out, source.Change{Key: key, Object: slice})
		}
	}
	a.given = wanted
	return out
}

// wanted is what the API server has, with what was handed over before in place of
// what has no backend, in families that have none left.
func (a *apiServers) wanted() map[model.Key]*model.EndpointSlice {
	alive := map[string]bool{}
	for _, slice := range a.read {
		alive[slice.AddressType] = alive[slice.AddressType] || hasBackend(slice)
	}
	wanted := make(map[model.Key]*model.EndpointSlice, len(a.read))
	for key, slice := range a.read {
		wanted[key] = slice
	}
	for key, slice := range a.given {
		if !alive[slice.AddressType] && hasBackend(slice) {
			wanted[key] = slice
		}
	}
	return wanted
}

func hasBackend(slice *model.EndpointSlice) bool {
	return slices.ContainsFunc(slice.Endpoints, func(e model.Endpoint) bool {
		return len(e.Addresses) > 0 && (e.Ready == nil || *e.Ready)
	})
}
