// SPDX-License-Identifier: Apache-2.0

// Package metrics has everything the agent counts, under millrace_agent_*.
package metrics

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

const prefix = "millrace_agent_"

// Metrics are the instruments that components write to.
type Metrics struct {
	// Registry has them all.
	Registry *prometheus.Registry

	Connects           prometheus.Counter
	Connected          prometheus.Gauge
	InSync             prometheus.Gauge
	StreamEnds         *prometheus.CounterVec // reason
	UnknownMessages    prometheus.Counter
	RefusedBatches     *prometheus.CounterVec // reason
	ReceivedRevision   prometheus.Gauge
	ProgrammedRevision prometheus.Gauge
	Batches            prometheus.Counter
	ApplyDuration      prometheus.Histogram
	Programming        prometheus.Histogram
	ResourceErrors     *prometheus.GaugeVec // reason
	LogErrors          prometheus.Counter
	SweepRemoved       prometheus.Counter
	SweepDuration      prometheus.Gauge
	SweepErrors        prometheus.Counter
	Passes             prometheus.Counter
	AffinityErrors     prometheus.Counter
	StaleUDP           prometheus.Counter
	MapGrowths         *prometheus.CounterVec   // map
	MovedEntries       *prometheus.CounterVec   // map
	DeniedCalls        *prometheus.CounterVec   // method, reason
	EndpointCalls      *prometheus.HistogramVec // call, code
}

// New returns all instruments, registered.
func New(version string) *Metrics {
	r := prometheus.NewRegistry()
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
		r.MustRegister(g)
		return g
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: prefix + name, Help: help, Buckets: buckets})
		r.MustRegister(h)
		return h
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
		r.MustRegister(v)
		return v
	}
	m := &Metrics{
		Registry:           r,
		Connects:           counter("connects_total", "Streams that were opened to a calculator."),
		Connected:          gauge("connected", "1 while a stream is open."),
		InSync:             gauge("in_sync", "1 while everything has been received on the open stream."),
		StreamEnds:         counters("stream_ends_total", "Streams that ended or could not be opened, by reason.", "reason"),
		UnknownMessages:    counter("unknown_messages_total", "Messages of a calculator that this agent does not know."),
		RefusedBatches:     counters("refused_batches_total", "Batches that were refused, by reason.", "reason"),
		ReceivedRevision:   gauge("received_revision", "Highest revision received on this stream."),
		ProgrammedRevision: gauge("programmed_revision", "Highest revision of this stream that the kernel holds."),
		Batches:            counter("batches_total", "Batches received."),
		ApplyDuration: histogram("apply_duration_seconds", "Time to program a batch, or several that came together.",
			prometheus.ExponentialBuckets(0.0001, 2, 18)),
		Programming: histogram("network_programming_duration_seconds",
			"Time from the oldest change of a batch to its being programmed.", prometheus.ExponentialBuckets(0.001, 2, 18)),
		LogErrors:      counter("state_log_errors_total", "Failed writes of the state log."),
		SweepRemoved:   counter("conntrack_swept_total", "Conntrack entries that were removed by sweeping."),
		SweepDuration:  gauge("conntrack_sweep_duration_seconds", "How long the last pass over conntrack took."),
		SweepErrors:    counter("conntrack_sweep_errors_total", "Passes over conntrack that failed."),
		Passes:         counter("conntrack_sweeps_total", "Passes over conntrack."),
		AffinityErrors: counter("affinity_sweep_errors_total", "Passes over the clients that keep backends that failed."),
		StaleUDP:       counter("conntrack_stale_udp_total", "UDP flows that were ended because their backend is gone."),
	}
	m.MapGrowths = counters("map_growths_total", "Times that a BPF map was replaced by a larger one under traffic.", "map")
	m.MovedEntries = counters("map_moved_entries_total", "Entries that moved to the larger BPF map that took the place of theirs.", "map")
	m.DeniedCalls = counters("denied_calls_total", "Calls of this agent's API that were refused before they reached their RPC.", "method", "reason")
	m.EndpointCalls = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: prefix + "endpoint_call_duration_seconds", Help: "Time that calls of the CNI plugin took, by call and status code.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
	}, []string{"call", "code"})
	m.ResourceErrors = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "resource_errors", Help: "Errors of resources that could not be programmed, by reason.",
	}, []string{"reason"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "1; the labels tell what was built.",
	}, []string{"version", "go_version"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	r.MustRegister(m.ResourceErrors, m.EndpointCalls, build, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
