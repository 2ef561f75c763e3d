// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/routes"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Diff implements dataplane.Dataplane. Both sides are read anew: what should be
// from the store, what is from the kernel. With thousands of services that takes
// long, so it is done piece by piece and changes go on in between; what differs
// then is looked at again between two changes.
func (p *Plane) Diff(between func(func()) error, visit func(*agentv1.DiffDesiredResponse) error) error {
	suspects, err := p.suspects()
	if err != nil {
		return err
	}
	var list []*agentv1.DiffDesiredResponse
	look := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		list, err = p.diffSome(suspects)
	}
	if len(suspects) > 0 {
		if failed := between(look); failed != nil {
			return failed
		}
	} else {
		look()
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		if err := visit(d); err != nil {
			return err
		}
	}
	return nil
}

// Pieces are so large that one holds up a change for about a millisecond.
const (
	servicesAPiece  = 32
	frontendsAPiece = 128
)

// locked runs f for pieces of a list, and lets changes go on in between.
func locked[E any](p *Plane, list []E, size int, f func(E) error) error {
	for piece := range slices.Chunk(list, size) {
		err := func() error {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, e := range piece {
				if err := f(e); err != nil {
					return err
				}
			}
			return nil
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

// suspects returns the frontends that are not as they should be, or were not
// when they were looked at, with the services that want them.
func (p *Plane) suspects() (map[tables.FrontendKey]string, error) {
	desired := map[tables.FrontendKey]desiredFrontend{}
	err := locked(p, p.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE), servicesAPiece, func(key string) error {
		p.desiredOf(key, desired)
		return nil
	})
	if err != nil {
		return nil, err
	}
	actual := map[tables.FrontendKey]tables.Frontend{}
	err = locked(p, tables.Families[:], 1, func(f tables.Family) error {
		return p.tables.ReadFrontends(f, func(e tables.FrontendEntry) { actual[e.Key] = e.Value })
	})
	if err != nil {
		return nil, err
	}
	keys := make([]tables.FrontendKey, 0, len(desired))
	for key := range desired {
		keys = append(keys, key)
	}
	suspects := map[tables.FrontendKey]string{}
	for key := range actual {
		if _, wanted := desired[key]; !wanted {
			suspects[key] = ""
		}
	}
	err = locked(p, keys, frontendsAPiece, func(key tables.FrontendKey) error {
		have, exists := actual[key]
		d, err := p.compare(key, desired[key], true, have, exists)
		if d != nil {
			suspects[key] = desired[key].service
		}
		return err
	})
	return suspects, err
}

// diffSome returns all differences; of frontends only those of suspects.
func (p *Plane) diffSome(suspects map[tables.FrontendKey]string) ([]*agentv1.DiffDesiredResponse, error) {
	var list []*agentv1.DiffDesiredResponse
	for _, part := range []func() ([]*agentv1.DiffDesiredResponse, error){
		func() ([]*agentv1.DiffDesiredResponse, error) { return p.diffSuspects(suspects) },
		p.diffRoutes, p.diffConfig, p.diffAttachments,
	} {
		some, err := part()
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	return list, nil
}

// diffSuspects compares frontends, without a look at services that have nothing
// to do with them.
func (p *Plane) diffSuspects(suspects map[tables.FrontendKey]string) ([]*agentv1.DiffDesiredResponse, error) {
	if len(suspects) == 0 {
		return nil, nil
	}
	desired := map[tables.FrontendKey]desiredFrontend{}
	looked := map[string]struct{}{}
	for key, wanting := range suspects {
		holder, _ := p.services.Holder(key)
		for _, service := range []string{wanting, holder} {
			if _, done := looked[service]; !done && service != "" {
				looked[service] = struct{}{}
				p.desiredOf(service, desired)
			}
		}
	}
	return p.diffServices(desired, func(key tables.FrontendKey) bool {
		_, is := suspects[key]
		return is
	})
}

// diff returns all differences.
func (p *Plane) diff() ([]*agentv1.DiffDesiredResponse, error) {
	list, err := p.diffServices(p.desiredFrontends(), func(tables.FrontendKey) bool { return true })
	if err != nil {
		return nil, err
	}
	rest, err := p.diffSome(nil)
	return append(list, rest...), err
}

// desiredFrontend is a frontend as the store says it should be.
type desiredFrontend struct {
	value    tables.Frontend // without a place
	backends []tables.Backend
	service  string
}

// desiredFrontends computes all frontends from the store.
func (p *Plane) desiredFrontends() map[tables.FrontendKey]desiredFrontend {
	desired := map[tables.FrontendKey]desiredFrontend{}
	for _, key := range p.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE) {
		p.desiredOf(key, desired)
	}
	return desired
}

// desiredOf adds the frontends of a service. One that two services want is the
// one's that holds it.
func (p *Plane) desiredOf(service string, desired map[tables.FrontendKey]desiredFrontend) {
	ports, _ := p.desire(service)
	for _, port := range ports {
		id, _ := p.ids.Get(services.IDKey(service, port.Name, port.Proto))
		for _, c := range port.Claims {
			if holder, held := p.services.Holder(c.Key); held && holder != service {
				continue
			}
			desired[c.Key] = desiredFrontend{
				value:    tables.Frontend{ServiceID: id, Flags: uint32(c.Flags), Affinity: port.Affinity},
				backends: port.Backends[c.Key.Family],
				service:  service,
			}
		}
	}
}

// compare describes the difference of a frontend; nil if there is none.
func (p *Plane) compare(key tables.FrontendKey, want desiredFrontend, wanted bool, have tables.Frontend, exists bool) (*agentv1.DiffDesiredResponse, error) {
	f := key.Family
	d := &agentv1.DiffDesiredResponse{Object: "frontends_" + f.String(), Key: key.String()}
	if wanted {
		d.Desired = describeFrontend(want.value, f, want.backends)
	}
	if exists {
		backends, err := p.readBackends(tables.FrontendEntry{Key: key, Value: have})
		if err != nil {
			return nil, err
		}
		d.Actual = describeFrontend(have, f, backends)
		if len(backends) != int(have.Count) {
			d.Actual += fmt.Sprintf(" [%d,%d) is outside of the map", have.First, have.First+have.Count)
		}
	}
	if d.Desired == d.Actual {
		return nil, nil
	}
	return d, nil
}

// diffServices compares the selected frontends with what is desired of them.
func (p *Plane) diffServices(desired map[tables.FrontendKey]desiredFrontend, selected func(tables.FrontendKey) bool) ([]*agentv1.DiffDesiredResponse, error) {
	var list []*agentv1.DiffDesiredResponse
	for _, f := range tables.Families {
		actual := map[tables.FrontendKey]tables.Frontend{}
		err := p.tables.ReadFrontends(f, func(e tables.FrontendEntry) { actual[e.Key] = e.Value })
		if err != nil {
			return nil, err
		}
		keys := map[tables.FrontendKey]struct{}{}
		for key := range actual {
			keys[key] = struct{}{}
		}
		for key := range desired {
			if key.Family == f {
				keys[key] = struct{}{}
			}
		}
		maps.DeleteFunc(keys, func(key tables.FrontendKey, _ struct{}) bool { return !selected(key) })
		for _, key := range slices.SortedFunc(maps.Keys(keys), services.CompareKeys) {
			want, wanted := desired[key]
			have, exists := actual[key]
			d, err := p.compare(key, want, wanted, have, exists)
			if err != nil {
				return nil, err
			}
			if d != nil {
				list = append(list, d)
			}
		}
	}
	return list, nil
}

func (p *Plane) diffRoutes() ([]*agentv1.DiffDesiredResponse, error) {
	desired := p.cluster.routes(p.devices.Endpoints)
	var list []*agentv1.DiffDesiredResponse
	describe := func(r tables.Route) string {
		return layout.Route{Flags: layout.RouteFlags(r.Flags), Ifindex: r.Ifindex}.String()
	}
	for _, f := range tables.Families {
		actual := map[tables.RouteKey]tables.Route{}
		if err := p.tables.ReadRoutes(f, func(e tables.RouteEntry) { actual[e.Key] = e.Value }); err != nil {
			return nil, err
		}
		for key, want := range desired {
			if key.Family != f {
				continue
			}
			d := &agentv1.DiffDesiredResponse{Object: "routes_" + f.String(), Key: key.Prefix().String(), Desired: describe(want)}
			if have, ok := actual[key]; ok {
				d.Actual = describe(have)
			}
			if d.Desired != d.Actual {
				list = append(list, d)
			}
		}
		for key, have := range actual {
			if _, ok := desired[key]; !ok {
				list = append(list, &agentv1.DiffDesiredResponse{
					Object: "routes_" + f.String(), Key: key.Prefix().String(), Actual: describe(have),
				})
			}
		}
	}
	slices.SortFunc(list, func(a, b *agentv1.DiffDesiredResponse) int {
		switch {
		case a.GetObject()+a.GetKey() < b.GetObject()+b.GetKey():
			return -1
		default:
			return 1
		}
	})
	return list, nil
}

func (p *Plane) diffConfig() ([]*agentv1.DiffDesiredResponse, error) {
	current, err := p.tables.ReadConfig()
	if err != nil {
		return nil, err
	}
	if want := p.desiredConfig(current); want != current {
		return []*agentv1.DiffDesiredResponse{{Object: "config", Key: "0", Desired: want.String(), Actual: current.String()}}, nil
	}
	return nil, nil
}

// diffAttachments compares the devices that should have programs with those
// that have.
func (p *Plane) diffAttachments() ([]*agentv1.DiffDesiredResponse, error) {
	missing, err := p.kernel.MissingAttachments()
	if err != nil {
		return nil, err
	}
	list := missing
	have, err := p.kernel.AttachedDevices()
	if err != nil {
		return nil, err
	}
	for _, device := range p.devices.Devices {
		whole, attached := have[device.Index]
		switch {
		case device.Role != interfaces.RoleIgnored && !whole:
			list = append(list, &agentv1.DiffDesiredResponse{
				Object: "device " + device.Name, Key: fmt.Sprint(device.Index), Desired: string(device.Role) + " programs",
			})
		case device.Role == interfaces.RoleIgnored && attached:
			list = append(list, &agentv1.DiffDesiredResponse{
				Object: "device " + device.Name, Key: fmt.Sprint(device.Index), Actual: "programs",
			})
		}
	}
	return list, nil
}

// Repair implements dataplane.Dataplane. It forgets what it believes to be in
// the kernel, adopts what is there as at a start, and programs everything that
// differs.
func (p *Plane) Repair(context.Context) (int, []*agentv1.DiffDesiredResponse, dataplane.Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retrySockets()
	before, err := p.diff()
	if err != nil {
		return 0, nil, dataplane.Result{}, err
	}
	if len(before) == 0 {
		p.lost = nil
		return 0, nil, p.result(), nil
	}
	if err := p.adopt(); err != nil {
		return 0, nil, dataplane.Result{}, err
	}
	p.kernel.Reset()
	d := &delta{services: map[string]struct{}{}, allServices: true}
	p.applyTopology(d)
	p.attachSockets()
	p.checkAttachments()
	p.applyServices(d)
	if p.inSync {
		p.prune()
	}
	remaining, err := p.diff()
	if err != nil {
		return 0, nil, p.result(), err
	}
	return max(0, len(before)-len(remaining)), remaining, p.result(), nil
}

// adopt reads anew what the maps hold.
func (p *Plane) adopt() error {
	// What an earlier life freed a moment ago is forgotten; programs that may
	// still look at it must end before it is handed out anew.
	if err := p.kernel.Quiesce(); err != nil {
		return err
	}
	numbers, err := ids.New(p.tables)
	if err != nil {
		return err
	}
	programmer, err := services.New(p.tables, numbers, p.now)
	if err != nil {
		return err
	}
	known, err := routes.New(p.tables)
	if err != nil {
		return err
	}
	// All or none: half of it would take ranges in use for free ones.
	p.ids, p.services, p.routes = numbers, programmer, known
	return nil
}
