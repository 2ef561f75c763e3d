// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// told is what calculators say of a pod of this node.
type told struct {
	uid       string
	addresses []netip.Addr
}

// endpoint is a pod of this node by everything that is known of it.
type endpoint struct {
	uid        string
	addresses  []netip.Addr
	calculator bool                // calculators tell of it
	local      *endpoints.Endpoint // the CNI plugin told of it
}

// merge makes endpoints of what calculators and what the CNI plugin tell. The
// same pod of both is one endpoint; of two pods with one name the newer holds.
// conflicts are pods of the CNI plugin that calculators know to be replaced.
func merge(calculator map[string]told, known endpoints.Known) (merged map[string]endpoint, conflicts []string) {
	merged = make(map[string]endpoint, len(calculator)+len(known.Endpoints))
	taken := map[netip.Addr]string{} // by pods of the CNI plugin
	for i := len(known.Endpoints) - 1; i >= 0; i-- {
		e := &known.Endpoints[i]
		key := e.Key()
		c, ok := calculator[key]
		newer := ok && c.uid != "" && c.uid != e.UID && c.uid != e.Replaces
		first, again := merged[key]
		switch {
		case newer:
			conflicts = append(conflicts, fmt.Sprintf("pod %s: the CNI plugin told of UID %s, calculators of UID %s, which is newer; its device is looked for by its addresses", key, e.UID, c.uid))
			continue
		case again && first.local.Container == e.Container:
			key += "/" + e.Interface // another interface of the pod
		case again:
			continue // a sandbox of before, which nobody took down
		}
		one := endpoint{uid: e.UID, addresses: e.Addresses, local: e}
		if ok && key == e.Key() && (c.uid == e.UID || c.uid == "") {
			one.calculator = true
			for _, a := range c.addresses {
				if !slices.Contains(one.addresses, a) {
					one.addresses = append(slices.Clip(one.addresses), a)
				}
			}
		}
		// What a newer pod was given is no longer an older one's.
		one.addresses = slices.DeleteFunc(slices.Clone(one.addresses), func(a netip.Addr) bool { return taken[a] != "" })
		for _, a := range one.addresses {
			taken[a] = key
		}
		merged[key] = one
	}
	for key, c := range calculator {
		if _, ok := merged[key]; ok {
			continue
		}
		if slices.ContainsFunc(known.Ended, func(e endpoints.Ended) bool { return e.Covers(key, c.uid, c.addresses) }) {
			continue
		}
		// An address that was given to a new pod is no longer that of an old one.
		left := slices.DeleteFunc(slices.Clone(c.addresses), func(a netip.Addr) bool { return taken[a] != "" })
		if len(left) == 0 && len(c.addresses) > 0 {
			continue
		}
		merged[key] = endpoint{uid: c.uid, addresses: left, calculator: true}
	}
	slices.Sort(conflicts)
	return merged, conflicts
}

// SetLocal implements dataplane.Dataplane.
func (p *Plane) SetLocal(_ context.Context, known endpoints.Known) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.cluster.merged
	p.cluster.local = known
	after, _ := merge(p.cluster.endpoints, known)
	p.release(before, after)
	d := &delta{services: map[string]struct{}{}}
	p.applyTopology(d)
	p.applyServices(d)
	return p.result()
}

// release notes what endpoints had that are no more: it goes although the node
// may not be in sync, as it is known to be nobody's.
func (p *Plane) release(before, after map[string]endpoint) {
	for key, e := range before {
		if now, ok := after[key]; ok && (now.local == nil || e.local == nil || now.local.Attachment == e.local.Attachment) {
			continue
		}
		if index := p.devices.Endpoints[key]; index != 0 {
			p.released.devices[index] = struct{}{}
		}
		for _, addr := range e.addresses {
			p.released.routes[hostRoute(addr)] = struct{}{}
		}
	}
}

// mergeEndpoints takes in what has changed of endpoints.
func (p *Plane) mergeEndpoints() {
	before := p.cluster.merged
	var conflicts []string
	p.cluster.merged, conflicts = merge(p.cluster.endpoints, p.cluster.local)
	for _, conflict := range conflicts {
		p.problem("%s", conflict)
	}
	for key := range before {
		if _, ok := p.cluster.merged[key]; !ok {
			p.errors.Set(held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, Key: key})
		}
	}
}

// findEndpoints returns what to look for at the node.
func (p *Plane) findEndpoints() []interfaces.Endpoint {
	list := make([]interfaces.Endpoint, 0, len(p.cluster.merged))
	for _, key := range slices.Sorted(maps.Keys(p.cluster.merged)) {
		e := p.cluster.merged[key]
		one := interfaces.Endpoint{Key: key, Addresses: e.addresses}
		if e.local != nil {
			one.Device, one.Index = e.local.Device, e.local.Index
		}
		list = append(list, one)
	}
	return list
}

// CalculatorUID implements dataplane.Dataplane.
func (p *Plane) CalculatorUID(key string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cluster.endpoints[key].uid
}

// CalculatorKnows implements dataplane.Dataplane.
func (p *Plane) CalculatorKnows(e *endpoints.Ended) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.cluster.endpoints[e.Key]
	return ok && e.Covers(e.Key, c.uid, c.addresses)
}

// Endpoints implements dataplane.Dataplane.
func (p *Plane) Endpoints() ([]dataplane.EndpointState, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := map[uint32]string{}
	for _, d := range p.devices.Devices {
		names[d.Index] = d.Name
	}
	list := make([]dataplane.EndpointState, 0, len(p.cluster.merged))
	for _, key := range slices.Sorted(maps.Keys(p.cluster.merged)) {
		list = append(list, p.endpointState(key, names))
	}
	return list, nil
}

func (p *Plane) endpointState(key string, devices map[uint32]string) dataplane.EndpointState {
	e := p.cluster.merged[key]
	state := dataplane.EndpointState{
		Key: key, UID: e.uid, Addresses: e.addresses, Calculator: e.calculator, By: p.devices.By[key], Local: e.local,
		Index: p.devices.Endpoints[key],
	}
	state.Device = devices[state.Index]
	if why, missing := p.devices.Missing[key]; missing {
		state.Reason, state.Problem = dataplane.ReasonDeviceNotFound, why
	} else if failure, attached := p.attached[state.Index]; !attached || failure != "" {
		state.Reason, state.Problem = dataplane.ReasonAttach, cmp.Or(failure, "its device was not looked at yet")
	}
	return state
}

// reportLocal tells calculators what the CNI plugin told.
func (p *Plane) reportLocal(report *dataplanev1.Report) {
	for _, e := range p.cluster.local.Endpoints {
		name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, Key: e.Key()}
		one := &dataplanev1.LocalEndpoint{Name: name.Proto(), Uid: e.UID}
		for _, a := range e.Addresses {
			one.Addresses = append(one.Addresses, a.AsSlice())
		}
		report.LocalEndpoints = append(report.LocalEndpoints, one)
	}
}

// HasPrograms implements dataplane.Dataplane.
func (p *Plane) HasPrograms(index uint32) (bool, error) {
	have, err := p.kernel.AttachedDevices()
	return have[index], err
}

// EndFlows implements dataplane.Dataplane.
func (p *Plane) EndFlows(addresses []netip.Addr) (int, error) {
	return p.conntrack.RemoveAddresses(addresses)
}
