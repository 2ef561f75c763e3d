// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"net"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/bpf/layout"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Fill is how full a table is.
type Fill struct{ Entries, Capacity uint64 }

// Sources are read when somebody asks for metrics.
type Sources struct {
	// Counters are the kernel's, by device and reason.
	Counters func() (map[layout.CounterKey]layout.Counter, error)
	// Fill tells how full the kernel's tables are, by name. It is asked often,
	// so it must not walk them.
	Fill func() map[string]Fill
	// Held counts resources by type.
	Held func() map[string]uint64
	// Problems are the present errors of resources; the first maxProblems are told.
	Problems func() []*dataplanev1.ResourceError
	// Failures counts insertions into kernel's tables that found no room, by name.
	Failures func() map[string]uint64
	// Writes counts the entries of maps that the agent wrote, by map and operation.
	Writes func() map[tables.Write]uint64
	// LogBytes is the length of the state log.
	LogBytes func() int64
	// LogAway tells that the state log is in memory for now.
	LogAway func() bool
}

var (
	packetsDesc = prometheus.NewDesc(prefix+"drops_packets_total",
		"Packets and calls that were dropped or answered in the backend's place, by reason and device.",
		[]string{"reason", "device"}, nil)
	bytesDesc = prometheus.NewDesc(prefix+"drops_bytes_total",
		"Bytes of packets that were dropped or answered in the backend's place, by reason and device.",
		[]string{"reason", "device"}, nil)
	entriesDesc = prometheus.NewDesc(prefix+"map_entries",
		"Entries of a BPF map; of flows (embryonic_*, established_*) as the last pass over them counted, which begins every 5 s or when the one before has ended.",
		[]string{"map"}, nil)
	capacityDesc = prometheus.NewDesc(prefix+"map_max_entries", "Entries that fit into a BPF map.", []string{"map"}, nil)
	failuresDesc = prometheus.NewDesc(prefix+"map_insert_failures_total",
		"Attempts of flows to be added to a BPF map of flows that had no room.", []string{"map"}, nil)
	writesDesc = prometheus.NewDesc(prefix+"map_writes_total",
		"Entries of BPF maps that the agent put or deleted, by map and operation.", []string{"map", "operation"}, nil)
	heldDesc    = prometheus.NewDesc(prefix+"held_resources", "Resources that the agent holds, by type.", []string{"type"}, nil)
	problemDesc = prometheus.NewDesc(prefix+"problem",
		"1 for each resource that could not be programmed and for the field to blame; at most 100.",
		[]string{"type", "key", "field", "reason"}, nil)
	logDesc  = prometheus.NewDesc(prefix+"state_log_bytes", "Length of the state log.", nil, nil)
	awayDesc = prometheus.NewDesc(prefix+"state_log_in_memory",
		"1 while the state log is kept in memory because the state directory cannot be written.", nil, nil)
)

// maxProblems bounds the series of problems.
const maxProblems = 100

type kernelCollector struct{ s Sources }

// RegisterSources adds what is read on demand.
func (m *Metrics) RegisterSources(s Sources) { m.Registry.MustRegister(kernelCollector{s}) }

// Describe implements prometheus.Collector.
func (c kernelCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{packetsDesc, bytesDesc, entriesDesc, capacityDesc, failuresDesc, writesDesc, heldDesc, problemDesc, logDesc, awayDesc} {
		ch <- d
	}
}

// device names a device for a label; deleted ones keep their number.
func device(index uint32) string {
	if index == 0 {
		return "socket"
	}
	if dev, err := net.InterfaceByIndex(int(index)); err == nil {
		return dev.Name
	}
	return strconv.Itoa(int(index))
}

// Collect implements prometheus.Collector.
func (c kernelCollector) Collect(ch chan<- prometheus.Metric) {
	emit := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	fail := func(d *prometheus.Desc, err error) { ch <- prometheus.NewInvalidMetric(d, err) }
	if counters, err := c.s.Counters(); err != nil {
		fail(packetsDesc, err)
	} else {
		for k, v := range counters {
			emit(packetsDesc, prometheus.CounterValue, float64(v.Packets), k.Reason.String(), device(k.Ifindex))
			emit(bytesDesc, prometheus.CounterValue, float64(v.Bytes), k.Reason.String(), device(k.Ifindex))
		}
	}
	for name, fill := range c.s.Fill() {
		emit(entriesDesc, prometheus.GaugeValue, float64(fill.Entries), name)
		emit(capacityDesc, prometheus.GaugeValue, float64(fill.Capacity), name)
	}
	for name, n := range c.s.Failures() {
		emit(failuresDesc, prometheus.CounterValue, float64(n), name)
	}
	for write, n := range c.s.Writes() {
		emit(writesDesc, prometheus.CounterValue, float64(n), write.Map, write.Operation)
	}
	for name, n := range c.s.Held() {
		emit(heldDesc, prometheus.GaugeValue, float64(n), name)
	}
	told := map[[4]string]struct{}{}
	for _, e := range c.s.Problems() {
		labels := [4]string{held.TypeName(e.GetName().GetType()), e.GetName().GetKey(), e.GetField(), e.GetReason()}
		if _, twice := told[labels]; twice {
			continue // several addresses in one field, for instance
		}
		if len(told) == maxProblems {
			break
		}
		told[labels] = struct{}{}
		emit(problemDesc, prometheus.GaugeValue, 1, labels[:]...)
	}
	emit(logDesc, prometheus.GaugeValue, float64(c.s.LogBytes()))
	away := 0.0
	if c.s.LogAway() {
		away = 1
	}
	emit(awayDesc, prometheus.GaugeValue, away)
}
