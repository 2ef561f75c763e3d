// SPDX-License-Identifier: Apache-2.0

package command

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/api"
	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/buildinfo"
	"github.com/millrace-project/millrace/agent/internal/cniinstall"
	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/discovery"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/endpointserver"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/identity"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	"github.com/millrace-project/millrace/agent/internal/netfilter"
	"github.com/millrace-project/millrace/agent/internal/statelog"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	mbpf "github.com/millrace-project/millrace/bpf"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// tuneMemory keeps the heap close to what is live. An agent allocates in
// bursts, a batch at a time, and has to be small rather than fast; whoever
// sets GOGC or GOMEMLIMIT knows better.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// Soft: beyond it collecting becomes frequent, nothing fails.
		debug.SetMemoryLimit(40 << 20)
	}
}

// agent is everything of a running agent.
type agent struct {
	*settings
	lock      *mbpf.Lock
	log       *zap.Logger
	metrics   *metrics.Metrics
	store     *held.Store
	journal   *statelog.Log
	system    *bpf.System
	plane     *bpf.Plane
	tables    *tables.Kernel
	applier   *applier.Applier
	client    *syncclient.Client
	discovery *discovery.Discovery
	sweeper   *conntrack.Sweeper
	grower    *conntrack.Grower
	serving   *api.Serving
	token     *identity.TokenFile   // nil if none is shown
	served    *identity.Certificate // nil if it is not signed by calculators

	registry  *endpoints.Registry
	endpoints *endpointserver.Server
	installer *cniinstall.Installer // nil if nothing is to be installed

	mu       sync.Mutex
	problems []string
	past     string // what is left of a release before, if it is worth telling
}

func (a *agent) problem(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

func (a *agent) listProblems() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := slices.Concat(a.grower.Problems(), a.problems, a.identityProblems())
	if a.installer != nil {
		all = append(all, a.installer.Problems()...)
	}
	if a.past != "" {
		all = append(all, a.past)
	}
	return all
}

// run runs the agent until ctx ends or something without which it is no use
// fails.
func run(ctx context.Context, s *settings) error {
	tuneMemory()
	log, err := s.logger()
	if err != nil {
		return fmt.Errorf("make logger: %w", err)
	}
	defer log.Sync() //nolint:errcheck // stderr cannot always be synced
	log = log.With(zap.String("node", s.node))
	version := buildinfo.Version()
	// Nothing is made before, so that nothing is left of an agent that is of no
	// use on its node.
	if err := awaitNode(ctx, s, log, version); errors.Is(err, errStopped) {
		return nil
	} else if err != nil {
		return err
	}
	lock, err := mbpf.LockPins(s.bpfFS, true)
	if err != nil {
		return fmt.Errorf("open dataplane: %w", err)
	}
	defer lock.Close() //nolint:errcheck // it goes with the process
	log.Info("starting", zap.String("version", version))
	a := &agent{settings: s, lock: lock, log: log, metrics: metrics.New(version), store: held.New()}
	if err := a.openLog(); err != nil {
		return err
	}
	defer func() {
		if err := a.journal.Close(); err != nil {
			log.Error("close state log", zap.Error(err))
		}
	}()
	kernel, err := a.openKernel()
	if err != nil {
		return err
	}
	defer kernel.Close() //nolint:errcheck // what is pinned goes on
	return a.serve(ctx, version)
}

func (a *agent) openLog() error {
	boot, err := statelog.BootID()
	if err != nil {
		return err
	}
	journal, recovery, err := statelog.Open(statelog.Options{Dir: a.stateDir, Fallback: a.fallbackLog(), Boot: boot}, a.store)
	if err != nil {
		return err
	}
	a.journal = journal
	a.openEndpoints(boot)
	if fault := journal.Fault(); fault != "" {
		a.log.Error("state log", zap.String("fault", fault))
	}
	if recovery.Damage != "" {
		a.log.Warn("the state log was damaged; what came after the damage was cut off, and calculators send it again",
			zap.String("damage", recovery.Damage), zap.Int64("bytes", recovery.TruncatedBytes), zap.Bool("discarded", recovery.Discarded))
		a.problem("the state log was damaged at start (%s); %d bytes were cut off", recovery.Damage, recovery.TruncatedBytes)
	}
	a.log.Info("state log read", zap.Int("records", recovery.Records), zap.Bool("same_boot", recovery.SameBoot),
		zap.Int("resources", len(a.store.Names())))
	return nil
}

// openKernel loads the programs, adopts or makes the maps, and attaches the
// socket programs.
func (a *agent) openKernel() (*mbpf.Dataplane, error) {
	options := a.mapOptions()
	options.Lock = a.lock
	if err := a.leaveUnused(&options); err != nil {
		return nil, err
	}
	kernel, err := mbpf.Open(options)
	if err != nil {
		return nil, fmt.Errorf("open dataplane: %w", err)
	}
	a.log.Info("dataplane opened", zap.Bool("programs_loaded", kernel.Loaded()), zap.Int("maps_adopted", len(kernel.Adopted())))
	if err := a.makePlane(kernel); err != nil {
		kernel.Close() //nolint:errcheck // the first error is told
		return nil, err
	}
	return kernel, nil
}

func (a *agent) makePlane(kernel *mbpf.Dataplane) error {
	for _, m := range kernel.Adopted() {
		if m.MaxEntries < m.Wanted && !m.Grows {
			a.log.Warn("a map has not the size asked for", zap.String("map", m.Name),
				zap.Uint32("entries", m.MaxEntries), zap.Uint32("wanted", m.Wanted))
			a.problem("map %s has room for %d entries, not %d: it could not be replaced by a larger one; remove it by cleanup to change that",
				m.Name, m.MaxEntries, m.Wanted)
		}
	}
	cookie, err := mbpf.HostNetnsCookie()
	if err != nil {
		return err
	}
	classifier, err := interfaces.NewClassifier(a.uplinkExclude)
	if err != nil {
		return err
	}
	a.system = bpf.NewSystem(kernel, a.bpfFS, a.cgroupRoot)
	options := bpf.Options{Node: a.node, SNATPorts: a.snat, FastPath: a.fastPath, HostNetnsCookie: cookie, Local: a.registry.Known(),
		Growth:        a.growth.policy(),
		GrowConntrack: func(name string, entries uint32) error { return a.grower.Grow(name, entries) },
		AllowFastPath: netfilter.Tracking{SysctlDir: a.sysctlDir, StateDir: a.stateDir}.Allow}
	a.tables = tables.NewKernel(kernel)
	a.plane, err = bpf.New(options, a.store, a.system, a.tables, classifier, a.system.Conntrack(), a.log)
	if err != nil {
		return fmt.Errorf("adopt maps: %w", err)
	}
	a.makeSweeper()
	a.makeGrower(kernel)
	if err := kernel.DetachSevered(); err != nil {
		a.log.Warn("remove what is left of deleted devices", zap.Error(err))
	}
	return nil
}

// serve restores, attaches, connects and serves.
func (a *agent) serve(ctx context.Context, version string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.applier = applier.New(a.store, a.journal, a.plane, a.metrics, a.log)
	a.makeDiscovery()
	a.client = syncclient.New(syncclient.Options{Node: a.node, Version: version, Discovery: a.discovery, Token: a.showToken()},
		a.store, a.applier, a.metrics, a.log)
	a.makeCNI()
	server := &api.Server{
		Node: a.node, Version: version, Started: time.Now(), Store: a.store, Dataplane: a.plane,
		Applier: a.applier, Stream: a.client, Problems: a.listProblems, Known: a.tellKnown,
		Endpoints: a.endpoints,
	}
	if a.installer != nil {
		server.CNI = a.installer.Proto
	}
	guard, err := a.guard(a.client)
	if err != nil {
		return err
	}
	if a.serving, err = api.Serve(server, a.listenUnix, a.listen, guard, func(err error) { cancel(err) }); err != nil {
		return err
	}
	defer a.serving.Stop()
	stopMetrics, err := a.serveMetrics(cancel)
	if err != nil {
		return err
	}
	defer stopMetrics()

	// Watching begins before the first look, so that nothing falls in between.
	events, err := interfaces.Watch(ctx, func(err error) { a.log.Warn("watch devices", zap.Error(err)) })
	if err != nil {
		return err
	}
	a.applier.Restore(ctx)
	// Sockets come last: they are of use once the maps are filled.
	a.plane.AttachSockets()
	a.serving.SetServing(true)
	debug.FreeOSMemory()
	a.log.Info("restored", zap.Int("resources", len(a.store.Names())))
	a.work(ctx, events)
	a.log.Info("stopping; the kernel goes on with what it has")
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (a *agent) tlsFor(flag, address string) (*tls.Config, error) {
	if address == "" {
		return nil, nil
	}
	return a.tls.Server(flag, address)
}

func (a *agent) makeSweeper() {
	a.sweeper = conntrack.NewSweeper(a.system.Conntrack(), conntrack.Observer{
		Begin: a.plane.RestingIDs,
		End: func(s conntrack.PassStats) {
			a.metrics.Passes.Inc()
			a.metrics.SweepRemoved.Add(float64(s.Removed))
			a.metrics.SweepDuration.Set(s.Duration.Seconds())
			a.plane.ForgetIDs(s.Unused)
		},
		Failed: func(err error) {
			a.metrics.SweepErrors.Inc()
			a.log.Error("sweep conntrack", zap.Error(err))
		},
	})
}

// makeGrower needs the sweeper.
func (a *agent) makeGrower(kernel *mbpf.Dataplane) {
	a.grower = conntrack.NewGrower(kernel, a.system.Conntrack(), a.sweeper.Last,
		a.growth.conntrackPolicy(a.sizes.embryonic, a.sizes.established), conntrack.GrowthEvents{
			Grown: func(name string) { a.metrics.MapGrowths.WithLabelValues(name).Inc() },
			Moved: func(name string, n int) { a.metrics.MovedEntries.WithLabelValues(name).Add(float64(n)) },
		}, a.log)
}

// work runs everything that goes on until ctx ends.
func (a *agent) work(ctx context.Context, events interfaces.Events) {
	var wait sync.WaitGroup
	defer wait.Wait()
	wait.Go(func() { a.applier.Run(ctx) })
	wait.Go(func() { a.client.Run(ctx) })
	wait.Go(func() { a.keepCertificate(ctx) })
	wait.Go(func() { a.discovery.Watch(ctx) })
	wait.Go(func() {
		a.journal.Maintain(ctx, func() { a.applier.LogChanged(ctx) }, a.applier.LogFailed) //nolint:errcheck // ctx has ended
	})
	wait.Go(func() { a.sweeper.Run(ctx) })
	wait.Go(func() { a.grower.Run(ctx) })
	wait.Go(func() { a.plane.EndStaleUDP(ctx, func(n int) { a.metrics.StaleUDP.Add(float64(n)) }) })
	wait.Go(func() {
		a.plane.ForgetAffinities(ctx, func(err error) {
			a.metrics.AffinityErrors.Inc()
			a.log.Error("forget clients of services with session affinity", zap.Error(err))
		})
	})
	wait.Go(func() { a.succeed(ctx) })
	wait.Go(func() { a.plane.Grow(ctx, a.applier.Refresh, a.grown) })
	wait.Go(func() { a.runCNI(ctx) })
	wait.Go(func() { a.followDevices(ctx, events.Changed) })
	wait.Go(func() { together(ctx, events.Gone, a.devicesGone(ctx)) })
	<-ctx.Done()
}

// grown counts tables that were replaced by larger ones.
func (a *agent) grown(names []string) {
	for _, name := range names {
		a.metrics.MapGrowths.WithLabelValues(name).Inc()
	}
}

// lookEvery is how often the node is looked at although no event told of a
// change: nothing tells of pins that somebody removed.
const lookEvery = 30 * time.Second

func (a *agent) followDevices(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	if a.plane.Unattached() != "" && a.applier.Refresh(ctx) != nil {
		return // ctx has ended
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
		if err := a.applier.Refresh(ctx); err != nil {
			return // ctx has ended
		}
	}
}

// together hands over deleted devices, all that wait at once: each hand-over is a
// pass over all flows, which must hold up neither the next devices nor new pods.
func together(ctx context.Context, gone <-chan uint32, forget func(...uint32)) {
	for {
		var indexes []uint32
		select {
		case <-ctx.Done():
			return
		case index := <-gone:
			indexes = append(indexes, index)
		}
		for len(gone) > 0 {
			indexes = append(indexes, <-gone)
		}
		forget(indexes...)
	}
}

// fill tells how full the maps are: the plane's own from what it wrote, those of
// flows from the last pass over them.
func (a *agent) fill() map[string]metrics.Fill {
	entries := a.plane.Fill()
	for name, n := range a.sweeper.Last().Entries {
		entries[name] = uint64(n)
	}
	capacities := a.system.Capacities()
	fill := make(map[string]metrics.Fill, len(entries))
	for name, n := range entries {
		if capacities[name] == 0 {
			continue // it was there during the last pass
		}
		fill[name] = metrics.Fill{Entries: n, Capacity: capacities[name]}
	}
	return fill
}

// serveMetrics serves metrics and health of an agent with a dataplane.
func (a *agent) serveMetrics(failed context.CancelCauseFunc) (stop func(), err error) {
	a.metrics.RegisterSources(metrics.Sources{
		Counters: a.system.Counters,
		Fill:     a.fill,
		Failures: a.grower.Failures,
		Writes:   a.tables.Writes,
		Held:     func() map[string]uint64 { return api.HeldCounts(a.store) },
		Problems: func() []*dataplanev1.ResourceError { return a.applier.Status().Errors },
		LogBytes: a.journal.Size,
		LogAway:  a.journal.Away,
	})
	return a.listenMetrics(failed, func() string {
		return cmp.Or(notReady(a.applier.Status(), a.store.Meta()), a.plane.Unattached())
	})
}

// listenMetrics serves metrics and health for those who ask by HTTP.
func (a *agent) listenMetrics(failed context.CancelCauseFunc, notReady func() string) (stop func(), err error) {
	if a.metricsListen == "" {
		return func() {}, nil
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(a.metrics.Registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	var config *tls.Config // plain HTTP without a certificate
	if a.tls.Cert != "" {
		if config, err = a.tlsFor("--metrics-listen", a.metricsListen); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", a.metricsListen)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve metrics: %w", err))
		}
	}()
	return func() { server.Close() }, nil //nolint:errcheck // nothing is left to lose
}
