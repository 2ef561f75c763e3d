// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-project/millrace/proto/access"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// metrics counts what the service does.
type metrics struct {
	streams     prometheus.Gauge
	opened      prometheus.Counter
	ended       *prometheus.CounterVec
	batches     *prometheus.CounterVec
	messages    prometheus.Counter
	bytes       prometheus.Counter
	resources   *prometheus.CounterVec
	acks        prometheus.Counter
	programming prometheus.Histogram
}

// kinds of batches, as the label of the batches' counter.
const (
	batchJoin    = "join"    // everything, to an agent that held nothing
	batchResume  = "resume"  // what differs from what an agent held
	batchShared  = "shared"  // one revision, the same bytes for all
	batchCatchUp = "catchup" // several revisions in one, or a membership change
)

// programmingBuckets are kube-proxy's for its network programming duration
// (0.25 s to 5 min), so that both can stand in one picture, with finer steps
// below.
func programmingBuckets() []float64 {
	buckets := []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5}
	buckets = append(buckets, prometheus.LinearBuckets(1, 1, 59)...)
	buckets = append(buckets, prometheus.LinearBuckets(60, 5, 12)...)
	return append(buckets, prometheus.LinearBuckets(120, 30, 7)...)
}

func newMetrics(registry prometheus.Registerer, service *Service) *metrics {
	const namespace, subsystem = "millrace", "calculator"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help})
	}
	counters := func(name, help string, label string, values ...string) *prometheus.CounterVec {
		vector := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, []string{label})
		for _, value := range values {
			vector.WithLabelValues(value) // series exist at 0
		}
		return vector
	}
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "streams",
			Help: "Streams that agents have open."}),
		opened: counter("streams_opened_total", "Streams that agents opened."),
		ended: counters("streams_ended_total", "Streams that ended, by reason of refusal or gRPC code.", "reason",
			ReasonNotSynced, ReasonBehindPosition, ReasonWrongEpoch, ReasonUnknownNode, ReasonReplaced, ReasonDraining,
			ReasonMalformed, ReasonUnknownMessage, access.ReasonForeignNode, ReasonBusy, ReasonStalled, ReasonConnectionAge,
			ReasonDuplicateNode),
		batches: counters("batches_sent_total", "Batches sent, by how they came about.", "kind",
			batchJoin, batchResume, batchShared, batchCatchUp),
		messages: counter("messages_sent_total", "Messages sent on streams."),
		bytes:    counter("sent_bytes_total", "Bytes of batches sent on streams."),
		resources: counters("resources_sent_total", "Resources sent in updates, summed over streams.", "operation",
			"upsert", "removal"),
		acks: counter("acks_received_total", "Acknowledgements received."),
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "network_programming_duration_seconds", Buckets: programmingBuckets(),
			Help: "From the oldest change of a batch to its acknowledgement by a node that has programmed it."}),
	}
	registry.MustRegister(m.streams, m.opened, m.ended, m.batches, m.messages, m.bytes, m.resources, m.acks, m.programming)
	registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "revision",
			Help: "The newest revision; 0 before the source has been read in whole."},
			func() float64 { return float64(service.publisher.Revision()) }),
		&nodeCollector{service: service,
			resources: prometheus.NewDesc("millrace_calculator_resources", "Resources, by type.", []string{"type"}, nil),
			nodes:     prometheus.NewDesc("millrace_calculator_nodes", "Nodes, by what is known of their agents.", []string{"state"}, nil),
			joins:     prometheus.NewDesc("millrace_calculator_joins", "Agents that are being brought up, and that wait for their turn.", []string{"state"}, nil),
			lag:       prometheus.NewDesc("millrace_calculator_lag_revisions", "Revisions that the connected node furthest behind is behind.", nil, nil),
		})
	return m
}

// nodeCollector reads figures that are known when somebody asks.
type nodeCollector struct {
	service                      *Service
	resources, nodes, lag, joins *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.resources
	descs <- c.nodes
	descs <- c.lag
	descs <- c.joins
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	counts := c.service.publisher.Counts()
	for kind, typeName := range dataplanev1.ResourceType_name {
		if kind != 0 {
			out <- prometheus.MustNewConstMetric(c.resources, prometheus.GaugeValue, float64(counts[typeName]), typeName)
		}
	}
	var connected, current, failing, absent, lag float64
	for _, node := range c.service.Nodes() {
		switch {
		case !node.GetConnected():
			absent++
			continue
		case node.GetLag() == 0 && node.GetInSync():
			current++
		}
		connected++
		if node.GetAck().GetErrorCount() > 0 {
			failing++
		}
		lag = max(lag, float64(node.GetLag()))
	}
	for state, count := range map[string]float64{"connected": connected, "current": current, "failing": failing, "absent": absent} {
		out <- prometheus.MustNewConstMetric(c.nodes, prometheus.GaugeValue, count, state)
	}
	out <- prometheus.MustNewConstMetric(c.lag, prometheus.GaugeValue, lag)
	running, waiting := c.service.admission.load()
	out <- prometheus.MustNewConstMetric(c.joins, prometheus.GaugeValue, float64(running), "running")
	out <- prometheus.MustNewConstMetric(c.joins, prometheus.GaugeValue, float64(waiting), "waiting")
}
