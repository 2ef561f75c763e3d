// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// Options tell what to put under load.
type Options struct {
	Cluster  *testbed.Cluster
	Binaries testbed.Binaries
	// Agents of the cluster.
	Agents []*testbed.Agent
	// Objects is where the calculators read from.
	Objects Objects
	// Rate of requests per second, in all.
	Rate int
}

// Traffic is a load that runs.
type Traffic struct {
	options Options
	probers []*testbed.Prober

	mu       sync.Mutex
	services map[string]testbed.Service

	barrierMu sync.Mutex
	barrier   testbed.Service
}

// Start serves the services, waits until every node has them, and starts the
// load.
func Start(ctx context.Context, options Options) (*Traffic, error) {
	t := &Traffic{options: options, services: map[string]testbed.Service{}, barrier: NewService("load-barrier", firstNumber+count-1)}
	t.barrier.Endpoints = []testbed.Endpoint{options.Cluster.Nodes[0].Endpoint()}
	all := append(services(options.Cluster), t.barrier)
	for _, service := range all {
		if err := options.Objects.Apply(ctx, service.Objects()...); err != nil {
			return nil, err
		}
	}
	load := probe.Load{Backends: map[string][]netip.AddrPort{}}
	for _, service := range all[:len(all)-1] {
		t.services[service.Name] = service
		for _, endpoint := range service.Endpoints {
			load.Backends[service.Name] = append(load.Backends[service.Name], backendsOf(service, endpoint)...)
			if err := t.serve(service, t.host(endpoint)); err != nil {
				return nil, err
			}
		}
	}
	for _, service := range all {
		if err := t.await(ctx, service); err != nil {
			return nil, err
		}
	}
	return t, t.start(load)
}

// start divides the load among the probers of its clients.
func (t *Traffic) start(load probe.Load) error {
	loads := map[*testbed.Prober]*probe.Load{}
	all := paths(t.options.Cluster, t.services)
	busy := 0
	for _, path := range all {
		for _, stream := range path.streams(time.Second) {
			if stream.Interval != idleInterval {
				busy++
			}
		}
	}
	interval := time.Second * time.Duration(busy) / time.Duration(t.options.Rate)
	for _, path := range all {
		get := t.options.Cluster.Probe
		if path.bypass {
			get = t.options.Cluster.ProbeBypass
		}
		prober, err := get(path.host, t.options.Binaries)
		if err != nil {
			return err
		}
		if loads[prober] == nil {
			loads[prober] = &probe.Load{Backends: load.Backends}
			t.probers = append(t.probers, prober)
		}
		loads[prober].Streams = append(loads[prober].Streams, path.streams(interval)...)
	}
	for _, prober := range t.probers {
		if err := prober.StartLoad(*loads[prober]); err != nil {
			return fmt.Errorf("start load on %s: %w", prober.Host.Name, err)
		}
	}
	return nil
}

// backendsOf are the addresses at which an endpoint answers for a service.
func backendsOf(service testbed.Service, endpoint testbed.Endpoint) []netip.AddrPort {
	target := service.Ports[0].Target
	return []netip.AddrPort{netip.AddrPortFrom(endpoint.IPv4, target), netip.AddrPortFrom(endpoint.IPv6, target)}
}

// host is the one that an endpoint is on.
func (t *Traffic) host(endpoint testbed.Endpoint) *testbed.Host {
	for _, host := range t.options.Cluster.Hosts() {
		if host.IPv4 == endpoint.IPv4 {
			return host
		}
	}
	return nil
}

// serve starts the echo servers of a service's backend.
func (t *Traffic) serve(service testbed.Service, host *testbed.Host) error {
	prober, err := t.options.Cluster.Probe(host, t.options.Binaries)
	if err != nil {
		return err
	}
	return prober.Serve(service.Ports[0].Target)
}

// await waits until every node has the service as it is.
func (t *Traffic) await(ctx context.Context, service testbed.Service) error {
	for _, agent := range t.options.Agents {
		err := testbed.Eventually(ctx, func() error { return agent.CheckService(ctx, service) })
		if err != nil {
			return fmt.Errorf("%s: %w", agent.Node.Name, err)
		}
	}
	return nil
}

// Barrier waits until every node has programmed all EndpointSlices that were
// written before: it changes one and waits for that, for they are read in the
// order in which they were written.
func (t *Traffic) Barrier(ctx context.Context) error {
	t.barrierMu.Lock()
	defer t.barrierMu.Unlock()
	ports := slices.Clone(t.barrier.Ports)
	for i := range ports {
		ports[i].Target = 9000 + (ports[i].Target+1)%1000
	}
	t.barrier.Ports = ports
	if err := t.applySlices(ctx, t.barrier); err != nil {
		return err
	}
	return t.await(ctx, t.barrier)
}

// applySlices writes a service's EndpointSlices. An API server that is just
// away is waited for.
func (t *Traffic) applySlices(ctx context.Context, service testbed.Service) error {
	return testbed.Eventually(ctx, func() error {
		return t.options.Objects.Apply(ctx, service.Slice(4), service.Slice(6))
	})
}

// Service returns a service under load as it is.
func (t *Traffic) Service(name string) testbed.Service {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.services[name]
}

// Scale gives a service other endpoints in the order that Kubernetes has: the
// new ones are added, the old ones terminate and then leave. When it returns,
// no node sends anything to those that left but what goes on on open TCP
// connections. Servers of new endpoints must be running (Serve). One call a
// service at a time.
func (t *Traffic) Scale(ctx context.Context, name string, endpoints ...testbed.Endpoint) error {
	service := t.Service(name)
	old := service.Endpoints
	isIn := func(list []testbed.Endpoint) func(testbed.Endpoint) bool {
		return func(e testbed.Endpoint) bool { return slices.Contains(list, e) }
	}
	added := slices.DeleteFunc(slices.Clone(endpoints), isIn(old))
	removed := slices.DeleteFunc(slices.Clone(old), isIn(endpoints))
	if err := t.tell(service, added, probe.Serving); err != nil {
		return err
	}
	if err := t.tell(service, removed, probe.Leaving); err != nil {
		return err
	}
	service.Endpoints = slices.Clone(endpoints)
	for _, endpoint := range removed {
		endpoint.Terminating = true
		service.Endpoints = append(service.Endpoints, endpoint)
	}
	if err := t.applySlices(ctx, service); err != nil {
		return err
	}
	if err := t.await(ctx, service); err != nil {
		return err
	}
	service.Endpoints = endpoints
	if len(removed) > 0 {
		if err := t.applySlices(ctx, service); err != nil {
			return err
		}
		if err := t.Barrier(ctx); err != nil {
			return err
		}
		if err := t.ended(ctx, service, removed); err != nil {
			return err
		}
	}
	t.mu.Lock()
	t.services[name] = service
	t.mu.Unlock()
	return t.tell(service, removed, probe.Gone)
}

// ended waits until no node leads a UDP flow of the service to the endpoints.
func (t *Traffic) ended(ctx context.Context, service testbed.Service, endpoints []testbed.Endpoint) error {
	for _, endpoint := range endpoints {
		for _, backend := range backendsOf(service, endpoint) {
			for _, agent := range t.options.Agents {
				if err := testbed.Eventually(ctx, func() error { return checkEnded(ctx, agent, backend) }); err != nil {
					return fmt.Errorf("%s: %w", agent.Node.Name, err)
				}
			}
		}
	}
	return nil
}

func checkEnded(ctx context.Context, agent *testbed.Agent, backend netip.AddrPort) error {
	flows, err := agent.ListConntrack(ctx, &agentv1.ListConntrackRequest{Address: backend.Addr().String()})
	if err != nil {
		return err
	}
	for {
		flow, err := flows.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if flow.GetService() != "" && flow.GetProtocol() == dataplanev1.Protocol_PROTOCOL_UDP && flow.GetBackend() == backend.String() {
			return fmt.Errorf("a flow of a removed backend has not ended: %v", flow)
		}
	}
}

// Serve starts the echo servers of a pod that is to become a backend.
func (t *Traffic) Serve(name string, pod *testbed.Pod) error {
	return t.serve(t.Service(name), &pod.Host)
}

// tell tells the probers of changed backends.
func (t *Traffic) tell(service testbed.Service, endpoints []testbed.Endpoint, state probe.BackendState) error {
	for _, endpoint := range endpoints {
		for _, backend := range backendsOf(service, endpoint) {
			for _, prober := range t.probers {
				if err := prober.ChangeBackend(probe.BackendChange{Service: service.Name, Backend: backend, State: state}); err != nil {
					return fmt.Errorf("%s: %w", prober.Host.Name, err)
				}
			}
		}
	}
	return nil
}

// Report returns what became of the requests that ended since the last report.
func (t *Traffic) Report() (*Report, error) { return t.collect((*probe.Client).ReportLoad) }

// Stop stops the load and returns the last report.
func (t *Traffic) Stop() (*Report, error) { return t.collect((*probe.Client).StopLoad) }

func (t *Traffic) collect(get func(*probe.Client) (probe.Report, error)) (*Report, error) {
	reports := make([]probe.Report, len(t.probers))
	failures := make([]error, len(t.probers))
	var group sync.WaitGroup
	for i, prober := range t.probers {
		group.Go(func() { reports[i], failures[i] = get(prober.Client) })
	}
	group.Wait()
	sum := &Report{}
	for i, report := range reports {
		sum.addProbe(t.probers[i].Host.Name, report)
	}
	return sum, errors.Join(failures...)
}
