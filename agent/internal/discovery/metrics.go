// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"github.com/prometheus/client_golang/prometheus"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

var (
	addressesDesc = prometheus.NewDesc("millrace_agent_known_calculators",
		"Addresses of calculators that are known, by where they are known from.", []string{"origin"}, nil)
	expiryDesc = prometheus.NewDesc("millrace_agent_ca_expiry_timestamp_seconds",
		"When the last of the certificate authorities expires that calculators are trusted by, by where they are known from.", []string{"origin"}, nil)
)

var labels = map[agentv1.Origin]string{
	agentv1.Origin_ORIGIN_STATIC: "static", agentv1.Origin_ORIGIN_MOUNTED: "mounted", agentv1.Origin_ORIGIN_HELD: "held",
}

// Describe implements prometheus.Collector.
func (d *Discovery) Describe(descs chan<- *prometheus.Desc) {
	descs <- addressesDesc
	descs <- expiryDesc
}

// Collect implements prometheus.Collector.
func (d *Discovery) Collect(out chan<- prometheus.Metric) {
	known := d.Look()
	addresses, expiry := map[agentv1.Origin]int{}, map[agentv1.Origin]float64{}
	for _, c := range known.Calculators {
		for _, o := range c.Origins {
			addresses[o]++
		}
	}
	for _, a := range known.Authorities {
		for _, o := range a.Origins {
			expiry[o] = max(expiry[o], float64(a.Certificate.NotAfter.Unix()))
		}
	}
	for origin, label := range labels {
		out <- prometheus.MustNewConstMetric(addressesDesc, prometheus.GaugeValue, float64(addresses[origin]), label)
		if end, ok := expiry[origin]; ok {
			out <- prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, end, label)
		}
	}
}
