// SPDX-License-Identifier: Apache-2.0

// Package bpf is the dataplane that forwards by BPF programs at sockets and on
// devices. It turns held resources into map entries and attachments.
package bpf

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/routes"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/bpf/layout"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// Overlaps tells whether the ranges share a port.
func (r PortRange) Overlaps(o PortRange) bool { return r.First <= o.Last && o.First <= r.Last }

// String returns "20000-29999".
func (r PortRange) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Options are the settings of a node that do not come by the stream.
type Options struct {
	// Node is the node's name.
	Node string
	// SNATPorts are the source ports of translated connections.
	SNATPorts PortRange
	// FastPath lets flows of the cluster pass the host's stack by.
	FastPath bool
	// HostNetnsCookie identifies the network namespace of the host.
	HostNetnsCookie uint64
}

// Timeouts of tracked flows in seconds: those of the kernel's own conntrack, as
// kube-proxy sets them, so that applications see no difference.
const (
	tcpSynTimeout         = 60
	tcpEstablishedTimeout = 24 * 60 * 60
	tcpCloseTimeout       = 30
	udpTimeout            = 30
	udpStreamTimeout      = 120
)

// Tables are the maps that the plane writes.
type Tables interface {
	services.Tables
	tables.IDs
	tables.Routes
	ReadConfig() (layout.Config, error)
	WriteConfig(layout.Config) error
}

// Classifier looks at the node's devices.
type Classifier interface {
	Classify(endpoints []interfaces.Endpoint, podPrefixes []netip.Prefix) (interfaces.State, error)
}

// Plane is the BPF dataplane.
type Plane struct {
	options    Options
	store      *held.Store
	tables     Tables
	kernel     Kernel
	classifier Classifier
	conntrack  *conntrack.Table
	log        *zap.Logger
	now        func() time.Time

	// mu guards what follows against queries; changes come from one goroutine.
	mu       sync.Mutex
	ids      *ids.Allocator
	services *services.Programmer
	routes   *routes.Programmer
	cluster  cluster
	config   *dataplanev1.NodeConfig
	env      services.Env
	devices  interfaces.State
	attached map[uint32]string // error of the device's programs, empty if none
	problems []string
	errors   dataplane.Errors
	retry    map[string]struct{} // services to try again
	// again tells that something beside services is to be tried again.
	again  bool
	inSync bool

	// staleUDP wakes the goroutine that ends flows to backends that are gone.
	staleUDP chan struct{}
}

var _ dataplane.Dataplane = (*Plane)(nil)

// New returns the dataplane over a kernel's maps, and adopts what they hold.
func New(options Options, store *held.Store, kernel Kernel, t Tables, classifier Classifier, ct *conntrack.Table,
	log *zap.Logger,
) (*Plane, error) {
	p := &Plane{
		options: options, store: store, tables: t, kernel: kernel, classifier: classifier, conntrack: ct, log: log, now: time.Now,
		cluster:  cluster{self: options.Node, nodes: map[string]*node{}, endpoints: map[string][]netip.Addr{}},
		attached: map[uint32]string{},
		retry:    map[string]struct{}{},
		staleUDP: make(chan struct{}, 1),
	}
	p.env.Node = options.Node
	if err := p.adopt(); err != nil {
		return nil, err
	}
	return p, nil
}

type fieldProblem struct{ field, message string }

func problemf(field string, index int, format string, args ...any) fieldProblem {
	return fieldProblem{fmt.Sprintf("%s[%d]", field, index), fmt.Sprintf(format, args...)}
}

// delta collects what a change touches.
type delta struct {
	services map[string]struct{}
	// topology is set if nodes, endpoints or settings changed: routes and
	// devices are looked at again.
	topology bool
	// allServices is set if every service may look different now.
	allServices bool
}

// Apply implements dataplane.Dataplane.
func (p *Plane) Apply(_ context.Context, change dataplane.Change) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &delta{services: map[string]struct{}{}}
	for _, name := range change.Names {
		p.note(name, d)
	}
	p.inSync = p.inSync || change.InSync
	if d.topology || change.InSync {
		p.applyTopology(d)
	}
	p.applyServices(d)
	if change.InSync {
		p.prune()
	}
	return p.result()
}

// Retry implements dataplane.Dataplane.
func (p *Plane) Retry(context.Context) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &delta{services: maps.Clone(p.retry), topology: p.again}
	if d.topology {
		p.applyTopology(d)
	}
	p.applyServices(d)
	return p.result()
}

// Refresh implements dataplane.Dataplane.
func (p *Plane) Refresh(context.Context) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &delta{services: map[string]struct{}{}}
	p.applyTopology(d)
	p.applyServices(d)
	return p.result()
}

func (p *Plane) result() dataplane.Result {
	return dataplane.Result{
		Errors: p.errors.Sorted(),
		Retry:  len(p.retry) > 0 || p.again,
		Report: p.report(),
	}
}

func (p *Plane) report() *dataplanev1.Report {
	report := &dataplanev1.Report{Problems: slices.Clone(p.problems)}
	for _, key := range slices.Sorted(maps.Keys(p.devices.Endpoints)) {
		if failure, ok := p.attached[p.devices.Endpoints[key]]; ok && failure == "" {
			name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, Key: key}
			report.AttachedEndpoints = append(report.AttachedEndpoints, name.Proto())
		}
	}
	return report
}

// prune removes what is known to be stale because everything is known.
func (p *Plane) prune() {
	removed, err := p.services.Prune()
	if removed > 0 {
		p.log.Info("removed frontends of services that are no more", zap.Int("count", removed))
	}
	if err != nil {
		p.log.Error("remove stale frontends", zap.Error(err))
		p.again = true
	}
}

// serviceOf returns the service that a slice's key names a part of.
func serviceOf(sliceKey string) string {
	if i := strings.LastIndexByte(sliceKey, '/'); i >= 0 {
		return sliceKey[:i]
	}
	return sliceKey
}

// note takes in a changed resource.
func (p *Plane) note(name held.Name, d *delta) {
	resource, err := p.store.Get(name)
	if err != nil {
		p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonUndecodable, "",
			err.Error()+"; what was programmed before stays"))
		return
	}
	if resource != nil && !known(name, resource) {
		p.log.Warn("resource of an unknown type", zap.Stringer("resource", name))
		p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonUnknownType, "",
			"this agent does not know the resource's type or content; it is kept but not programmed"))
		return
	}
	switch name.Type {
	case dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG:
		p.noteConfig(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_NODE:
		p.noteNode(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT:
		p.noteEndpoint(name, resource, d)
	case dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE:
		p.errors.Set(name)
		d.services[serviceOf(name.Key)] = struct{}{}
	case dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE:
		p.errors.Set(name)
		d.services[name.Key] = struct{}{}
	default:
		p.errors.Set(name) // an unknown one was removed
	}
}

// known tells whether the content is of the type that the name says, and of one
// that this agent understands.
func known(name held.Name, r *dataplanev1.Resource) bool {
	var content dataplanev1.ResourceType
	switch r.GetContent().(type) {
	case *dataplanev1.Resource_NodeConfig:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG
	case *dataplanev1.Resource_Node:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_NODE
	case *dataplanev1.Resource_Endpoint:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT
	case *dataplanev1.Resource_BackendSlice:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE
	case *dataplanev1.Resource_Service:
		content = dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE
	}
	return content == name.Type && content != dataplanev1.ResourceType_RESOURCE_TYPE_UNSPECIFIED
}

func (p *Plane) noteConfig(name held.Name, r *dataplanev1.Resource, d *delta) {
	if name.Key != p.options.Node {
		return // another node's; not ours to follow
	}
	d.topology = true
	p.config = r.GetNodeConfig()
	var list []*dataplanev1.ResourceError
	switch p.config.GetMode() {
	case dataplanev1.DataplaneMode_DATAPLANE_MODE_UNSPECIFIED, dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF:
	default:
		list = append(list, dataplane.NewError(name, dataplane.ReasonUnsupported, "mode",
			fmt.Sprintf("this agent has no dataplane for mode %d; it stays in mode BPF", p.config.GetMode())))
	}
	if np := p.config.GetNodePorts(); np != nil {
		r := PortRange{uint16(min(np.GetFirst(), 65535)), uint16(min(np.GetLast(), 65535))}
		switch {
		case np.GetFirst() < 1 || np.GetLast() > 65535 || np.GetFirst() > np.GetLast():
			list = append(list, dataplane.NewError(name, dataplane.ReasonInvalid, "node_ports",
				fmt.Sprintf("%d-%d is no range of ports", np.GetFirst(), np.GetLast())))
		case p.options.SNATPorts.Overlaps(r):
			list = append(list, dataplane.NewError(name, dataplane.ReasonPortsOverlap, "node_ports",
				fmt.Sprintf("node ports %s overlap the source ports %s of translated connections, which may be "+
					"mistaken for each other; change --snat-ports of the agent", r, p.options.SNATPorts)))
		}
	}
	p.errors.Set(name, list...)
}

func (p *Plane) noteNode(name held.Name, r *dataplanev1.Resource, d *delta) {
	d.topology = true
	if r == nil {
		delete(p.cluster.nodes, name.Key)
		p.errors.Set(name)
		return
	}
	n, bad := nodeOf(r.GetNode())
	p.cluster.nodes[name.Key] = n
	p.errors.Set(name, invalid(name, bad)...)
}

func (p *Plane) noteEndpoint(name held.Name, r *dataplanev1.Resource, d *delta) {
	d.topology = true
	if r == nil {
		delete(p.cluster.endpoints, name.Key)
		p.errors.Set(name)
		return
	}
	var addresses []netip.Addr
	for _, raw := range r.GetEndpoint().GetAddresses() {
		if addr, ok := netip.AddrFromSlice(raw); ok {
			addresses = append(addresses, addr.Unmap())
		}
	}
	p.cluster.endpoints[name.Key] = addresses
}

func invalid(name held.Name, bad []fieldProblem) []*dataplanev1.ResourceError {
	var list []*dataplanev1.ResourceError
	for _, b := range bad {
		list = append(list, dataplane.NewError(name, dataplane.ReasonInvalid, b.field, b.message))
	}
	return list
}

// applyServices programs the services that the delta names.
func (p *Plane) applyServices(d *delta) {
	names := slices.Collect(maps.Keys(d.services))
	if d.allServices {
		names = p.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE)
		for name := range d.services {
			names = append(names, name)
		}
		slices.Sort(names)
		names = slices.Compact(names)
	}
	if len(names) == 0 {
		return
	}
	result := p.services.Apply(names, p.desire)
	for service, problems := range result.Problems {
		p.setServiceErrors(service, problems)
		delete(p.retry, service)
	}
	for _, service := range result.Retry {
		p.retry[service] = struct{}{}
	}
	if result.StaleUDP {
		select {
		case p.staleUDP <- struct{}{}:
		default:
		}
	}
}

// desire reads a service and computes what it is to look like.
func (p *Plane) desire(key string) ([]services.Port, []services.Problem) {
	name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: key}
	r, err := p.store.Get(name)
	if err != nil || r.GetService() == nil {
		return nil, nil
	}
	service := r.GetService()
	var parts []*dataplanev1.BackendSlice
	for chunk := range service.GetBackendSlices() {
		part, err := p.store.Get(sliceName(key, chunk))
		if err != nil || part.GetBackendSlice() == nil {
			continue // fewer than announced: programmed as far as held
		}
		parts = append(parts, part.GetBackendSlice())
	}
	return services.Desire(service, parts, &p.env)
}

func sliceName(service string, chunk uint32) held.Name {
	return held.Name{
		Type: dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE,
		Key:  fmt.Sprintf("%s/%d", service, chunk),
	}
}

func (p *Plane) setServiceErrors(service string, problems []services.Problem) {
	name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: service}
	// Errors of slices stand under the service's name here, so that they go
	// when the service is well; what is told names the slice.
	var list []*dataplanev1.ResourceError
	for _, problem := range problems {
		of := name
		if problem.Slice != nil {
			of = sliceName(service, *problem.Slice)
		}
		list = append(list, dataplane.NewError(of, problem.Reason, problem.Field, problem.Message))
	}
	p.errors.Set(name, list...)
}

// EndStaleUDP ends UDP flows to backends that are gone, whenever there may be
// some, until ctx ends.
func (p *Plane) EndStaleUDP(ctx context.Context, ended func(int)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.staleUDP:
		}
		n, err := p.conntrack.RemoveStaleUDP(p.answers)
		if err != nil {
			p.log.Error("end UDP flows to backends that are gone", zap.Error(err))
		}
		ended(n)
	}
}

func (p *Plane) answers(frontend, backend netip.AddrPort, proto uint8) bool {
	addr, family := tables.FromAddr(frontend.Addr())
	key := tables.FrontendKey{Addr: addr, Port: frontend.Port(), Proto: proto, Family: family}
	to, _ := tables.FromAddr(backend.Addr())
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.services.Answers(key, to, backend.Port())
}

// RestingIDs returns the numbers that conntrack records may still name although
// their owners are gone.
func (p *Plane) RestingIDs() map[uint32]struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	resting := map[uint32]struct{}{}
	for _, id := range p.ids.Resting() {
		resting[id] = struct{}{}
	}
	return resting
}

// ForgetIDs gives up numbers that were found unused. Before the node is in sync
// an owner may still turn up.
func (p *Plane) ForgetIDs(unused map[uint32]struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.inSync || len(unused) == 0 {
		return
	}
	var keys []tables.IDKey
	for key, id := range p.ids.Resting() {
		if _, ok := unused[id]; ok {
			keys = append(keys, key)
		}
	}
	if err := p.ids.Forget(keys); err != nil {
		p.log.Error("give up numbers", zap.Error(err))
	}
}
