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

	"github.com/millrace-project/millrace/agent/internal/affinity"
	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/ids"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/routes"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
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
	// AllowFastPath prepares the host for the fast path; while it fails, the fast
	// path is off. Nil: nothing is to be prepared.
	AllowFastPath func() error
	// Growth says when tables are replaced by larger ones.
	Growth GrowthPolicy
	// GrowConntrack replaces a map of flows by a larger one.
	GrowConntrack func(name string, entries uint32) error
	// Local is what the CNI plugin told before this start.
	Local endpoints.Known
	// HostNetnsCookie identifies the network namespace of the host.
	HostNetnsCookie uint64
}

// Timeouts of tracked flows in seconds: those of the kernel's own conntrack, as
// kube-proxy sets them, so that applications see no difference.
const (
	tcpSynTimeout         = 60
	tcpEstablishedTimeout = 24 * 60 * 60
	tcpCloseTimeout       = 10
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
	fastPath bool // allowed when last looked at
	devices  interfaces.State
	attached map[uint32]string // error of the device's programs, empty if none
	released released          // of endpoints that the CNI plugin took down
	problems []string
	lost     []string // problems of attachments that are gone
	// unattached is why the programs of sockets are not attached.
	unattached string
	errors     dataplane.Errors
	retry      map[string]struct{} // services to try again
	// again tells that something beside services is to be tried again.
	again  bool
	inSync bool
	// unpruned tells that stale frontends could not be removed yet.
	unpruned bool
	stale    string // why, for people

	// affinities are the clients that keep a backend, as last counted.
	affinities affinity.Counts

	// full are tables that had no room for something since they were looked at.
	full map[string]struct{}
	// growthFault is why a table that should grow does not.
	growthFault string
	// unpinned tells that tables grew that could not be pinned yet.
	unpinned bool
	// growing is held by whoever replaces tables: one growth at a time.
	growing sync.Mutex
	// grow wakes the goroutine that makes tables grow.
	grow chan struct{}

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
		cluster:  cluster{self: options.Node, nodes: map[string]*node{}, endpoints: map[string]told{}, local: options.Local},
		attached: map[uint32]string{},
		released: released{devices: map[uint32]struct{}{}, routes: map[tables.RouteKey]struct{}{}},
		retry:    map[string]struct{}{},
		staleUDP: make(chan struct{}, 1),
		full:     map[string]struct{}{},
		grow:     make(chan struct{}, 1),
	}
	p.env.Node = options.Node
	if err := p.adopt(); err != nil {
		return nil, err
	}
	return p, nil
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
	first := change.InSync && !p.inSync
	p.inSync = p.inSync || first
	if d.topology || first {
		p.applyTopology(d)
	}
	p.applyServices(d)
	if first {
		p.prune()
		// An agent that ended between a change and this may have left some.
		p.wakeStaleUDP()
	}
	return p.result()
}

// Retry implements dataplane.Dataplane.
func (p *Plane) Retry(context.Context) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retrySockets()
	d := &delta{services: maps.Clone(p.retry), topology: p.again}
	if d.topology {
		p.applyTopology(d)
	}
	p.applyServices(d)
	if p.unpruned {
		p.prune()
	}
	return p.result()
}

// Refresh implements dataplane.Dataplane.
func (p *Plane) Refresh(context.Context) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retrySockets()
	d := &delta{services: maps.Clone(p.retry)} // for which there may be room now
	p.applyTopology(d)
	p.applyServices(d)
	p.checkAttachments()
	return p.result()
}

func (p *Plane) result() dataplane.Result {
	p.wakeGrow()
	return dataplane.Result{
		Errors: p.errors.Sorted(),
		Retry:  len(p.retry) > 0 || p.again || p.unpruned || p.unattached != "",
		Report: p.report(),
	}
}

func (p *Plane) report() *dataplanev1.Report {
	report := &dataplanev1.Report{Problems: slices.Concat(p.problems, p.lost)}
	if p.unattached != "" {
		report.Problems = append(report.Problems, p.unattached)
	}
	if p.stale != "" {
		report.Problems = append(report.Problems, p.stale)
	}
	if p.growthFault != "" {
		report.Problems = append(report.Problems, p.growthFault)
	}
	for _, key := range slices.Sorted(maps.Keys(p.devices.Endpoints)) {
		if failure, ok := p.attached[p.devices.Endpoints[key]]; ok && failure == "" {
			name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, Key: key}
			report.AttachedEndpoints = append(report.AttachedEndpoints, name.Proto())
		}
	}
	p.reportLocal(report)
	return report
}

// released is what the kernel may still hold although its endpoint is no more.
type released struct {
	devices map[uint32]struct{}
	routes  map[tables.RouteKey]struct{}
}

// prune removes what is known to be stale because everything is known.
func (p *Plane) prune() {
	removed, err := p.services.Prune()
	if removed > 0 {
		p.log.Info("removed frontends of services that are no more", zap.Int("count", removed))
	}
	p.unpruned, p.stale = err != nil, ""
	if err != nil {
		p.log.Error("remove stale frontends", zap.Error(err))
		p.stale = fmt.Sprintf("frontends of services that are no more could not be removed: %v; it is tried again", err)
	}
}

// serviceOf returns the service that a slice's key names a part of.
func serviceOf(sliceKey string) string {
	if i := strings.LastIndexByte(sliceKey, '/'); i >= 0 {
		return sliceKey[:i]
	}
	return sliceKey
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
	names = slices.DeleteFunc(names, p.incomprehensible)
	if len(names) == 0 {
		return
	}
	result := p.services.Apply(names, p.desire)
	for service, problems := range result.Problems {
		p.setServiceErrors(service, problems)
		delete(p.retry, service)
	}
	for _, name := range result.Full {
		p.full[name] = struct{}{}
	}
	for _, service := range result.Retry {
		p.retry[service] = struct{}{}
	}
	if result.StaleUDP {
		p.wakeStaleUDP()
	}
}

// InSync tells whether a calculator has said that the node holds everything.
func (p *Plane) InSync() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.inSync
}

func (p *Plane) wakeStaleUDP() {
	select {
	case p.staleUDP <- struct{}{}:
	default:
	}
}

// incomprehensible tells that a service is held in a form that this agent cannot
// read: what was programmed of it before stays.
func (p *Plane) incomprehensible(service string) bool {
	name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: service}
	return slices.ContainsFunc(p.errors.Of(name), func(e *dataplanev1.ResourceError) bool {
		return e.GetReason() == dataplane.ReasonUnknownType || e.GetReason() == dataplane.ReasonUndecodable
	})
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
	named := p.services.Unclaimed()
	var keys []tables.IDKey
	for key, id := range p.ids.Resting() {
		_, ok := unused[id]
		if _, still := named[id]; ok && !still {
			keys = append(keys, key)
		}
	}
	if err := p.ids.Forget(keys); err != nil {
		p.log.Error("give up numbers", zap.Error(err))
	}
}
