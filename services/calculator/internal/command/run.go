// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/calc/canonical"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/api"
	"github.com/millrace-project/millrace/services/calculator/internal/events"
	"github.com/millrace-project/millrace/services/calculator/internal/pipeline"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
	"github.com/millrace-project/millrace/services/calculator/internal/source/dir"
	"github.com/millrace-project/millrace/services/calculator/internal/source/kube"
	"github.com/millrace-project/millrace/services/calculator/internal/trust"
	"github.com/millrace-project/millrace/services/internal/buildinfo"
	"github.com/millrace-project/millrace/services/internal/transport"
)

// calculator is a running calculator.
type calculator struct {
	options   *options
	log       *zap.Logger
	registry  *prometheus.Registry
	source    source.Source
	publisher *publish.Publisher
	sync      *publish.Service
	pipeline  *pipeline.Pipeline
	problems  *pipeline.Problems
	events    *events.Recorder // nil without an API server
	servers   *servers
	trust     *trust.Keeper // nil if nothing is kept
}

// run runs a calculator until the context ends or it cannot go on.
func run(ctx context.Context, o *options, stderr io.Writer) error {
	log := newLog(o, stderr)
	defer log.Sync() //nolint:errcheck // standard error cannot always be synced
	c, err := build(o, log)
	if err != nil {
		return err
	}
	// All listeners before anything is read: an address in use is an error at
	// the start.
	listeners, err := c.listen()
	if err != nil {
		return err
	}
	log.Info("calculator starts", zap.String("version", buildinfo.Version()), zap.String("id", c.sync.CalculatorID),
		zap.String("source", c.source.Name()), zap.String("location", location(c.source)), zap.String("listen", o.listen), zap.String("socket", o.socket),
		zap.String("metrics", o.metricsListen))

	// Reading ends only after the streams have been drained: until then agents
	// get what changes.
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	group, failed := errgroup.WithContext(working)
	group.Go(func() error { c.pipeline.Run(failed); return nil })
	group.Go(func() error { return c.source.Run(failed, c.pipeline) })
	if c.trust != nil {
		group.Go(func() error { c.trust.Run(failed); return nil })
	}
	group.Go(func() error { c.servers.followHealth(failed, c.publisher); return nil })
	if c.events != nil {
		group.Go(func() error { c.tellEvents(failed); return nil })
	}
	for _, serve := range listeners {
		group.Go(serve)
	}
	select {
	case <-ctx.Done():
		log.Info("calculator stops")
	case <-failed.Done():
	}
	c.servers.stop(c.sync, o)
	stopWork()
	return group.Wait()
}

func newLog(o *options, stderr io.Writer) *zap.Logger {
	config := zap.NewProductionEncoderConfig()
	config.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(config)
	if o.logFormat == "console" {
		encoder = zapcore.NewConsoleEncoder(config)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(stderr)), o.level))
}

// build puts the parts of a calculator together.
func build(o *options, log *zap.Logger) (*calculator, error) {
	c := &calculator{options: o, log: log, registry: prometheus.NewRegistry(), publisher: publish.NewPublisher()}
	version := buildinfo.Version()
	info := prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "millrace", Subsystem: "calculator", Name: "build_info",
		Help: "Always 1; what is running is in the labels.", ConstLabels: prometheus.Labels{"version": version}})
	info.Set(1)
	c.registry.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	var err error
	var config *rest.Config // of the API server, if there is one
	if c.source, config, err = newSource(o, log.Named("source")); err != nil {
		return nil, err
	}
	c.problems = pipeline.NewProblems(log.Named("problems"), c.registry)
	c.pipeline = pipeline.New(c.publisher, c.problems, log.Named("pipeline"), pipeline.DefaultInterval)
	if err := c.keepTrust(config, log.Named("trust")); err != nil {
		return nil, err
	}
	schemas := map[dataplanev1.ResourceType]uint32{}
	for number := range dataplanev1.ResourceType_name {
		if schema := canonical.OldestSchema(dataplanev1.ResourceType(number)); schema != 0 {
			schemas[dataplanev1.ResourceType(number)] = schema
		}
	}
	if o.announcement().Name == "" {
		// Agents keep what another calculator told them.
		delete(schemas, dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS)
	}
	var ahead func(node, epoch string, position map[string]uint64) string
	if overtaken, ok := c.source.(source.Overtaken); ok {
		ahead = overtaken.Ahead
	}
	c.sync = publish.NewService(c.publisher, publish.Options{Ahead: ahead, Pod: c.pipeline.Pod,
		CalculatorID: calculatorID(), Version: version, Epoch: c.source.Epoch, Schemas: schemas,
		JoinLimit: o.joinLimit, MaxAge: o.maxConnectionAge, AgeGrace: o.maxConnectionAgeGrace,
		Log: log.Named("sync"), Registry: c.registry})
	if err := c.recordEvents(config, log.Named("events")); err != nil {
		return nil, err
	}
	answers := &api.Service{
		Version: version, CalculatorID: c.sync.CalculatorID, StartTime: time.Now(), Source: c.source,
		Publisher: c.publisher, Sync: c.sync, Problems: c.problems.List}
	if c.trust != nil {
		answers.Trust = c.trust.Status
	}
	callers, err := c.newAuthenticator(config, log.Named("auth"))
	if err != nil {
		return nil, err
	}
	c.servers = newServers(o, c.accessService(callers), c.sync, answers)
	return c, nil
}

func newSource(o *options, log *zap.Logger) (source.Source, *rest.Config, error) {
	if o.source == "dir" {
		return dir.New(o.manifests, log), nil, nil
	}
	config, err := kube.Config(o.kubeconfig, "millrace-calculator/"+buildinfo.Version())
	if err != nil {
		return nil, nil, fmt.Errorf("--source=kube: %w", err)
	}
	s, err := kube.New(config, kube.Origin(o.kubeconfig), o.announcement(), log)
	return s, config, err
}

// location is where the source is, if it is anywhere else.
func location(from source.Source) string {
	if located, ok := from.(source.Located); ok {
		return located.Location()
	}
	return ""
}

// notReady tells why agents cannot be served yet; empty if they can.
func (c *calculator) notReady() string {
	if c.publisher.Synced() {
		return ""
	}
	why := "the source has not been read in whole yet"
	if at := location(c.source); at != "" {
		why += ": " + at
	}
	for _, one := range c.problems.List() {
		if one.Object.Kind == source.KindWatch {
			why += "\n" + one.Message
		}
	}
	return why
}

// calculatorID identifies the process: the pod or the host for people, chance
// for the rest.
func calculatorID() string {
	place := os.Getenv("POD_NAME")
	if place == "" {
		var err error
		if place, err = os.Hostname(); err != nil {
			place = "unknown"
		}
	}
	return place + "-" + rand.Text()[:8]
}

// listen opens all addresses and returns what serves on them until the servers
// are stopped.
func (c *calculator) listen() ([]func() error, error) {
	var serve []func() error
	add := func(what string, listener net.Listener, server func(net.Listener) error) {
		serve = append(serve, func() error {
			if err := server(listener); err != nil {
				return fmt.Errorf("serving %s on %s: %w", what, listener.Addr(), err)
			}
			return nil
		})
	}
	if c.options.listen != "" {
		listener, err := net.Listen("tcp", c.options.listen)
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		add("gRPC", listener, c.servers.tcp.Serve)
	}
	if c.options.socket != "" {
		listener, err := transport.ListenUnix(c.options.socket)
		if err != nil {
			return nil, fmt.Errorf("--socket: %w", err)
		}
		add("gRPC", listener, c.servers.unix.Serve)
	}
	if c.options.metricsListen != "" {
		listener, err := net.Listen("tcp", c.options.metricsListen)
		if err != nil {
			return nil, fmt.Errorf("--metrics-listen: %w", err)
		}
		c.servers.http = newHTTP(c.registry, c.notReady, c.options.pprof)
		add("metrics", listener, c.servers.serveHTTP)
	}
	return serve, nil
}
