// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/proto/announcement"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/trust/authority"
)

// metrics are what is counted, and a collector of when certificates expire.
type metrics struct {
	keeper   *Keeper
	steps    *prometheus.CounterVec
	failures *prometheus.CounterVec
	expiry   *prometheus.Desc
	known    *prometheus.Desc
}

const prefix = "millrace_calculator_"

func newMetrics(registry prometheus.Registerer, k *Keeper) *metrics {
	m := &metrics{
		keeper: k,
		steps: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "ca_steps_total",
			Help: "Steps of the certificate authority's life that this calculator took: created, announced, exchanged (a rotation), dropped."}, []string{"step"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "trust_errors_total",
			Help: "Failed looks at the Secret and ConfigMap of the calculators, by what failed."}, []string{"part"}),
		expiry: prometheus.NewDesc(prefix+"certificate_expiry_timestamp_seconds",
			"When a certificate expires: the one that is shown to agents (serving), and the latest of the authorities by what they are used for.", []string{"certificate"}, nil),
		known: prometheus.NewDesc(prefix+"announced_addresses", "Addresses of calculators that are announced to agents.", nil, nil),
	}
	for _, step := range authority.Steps() {
		m.steps.WithLabelValues(step) // series exist at 0
	}
	registry.MustRegister(m.steps, m.failures, m)
	return m
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- m.expiry
	descs <- m.known
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	k := m.keeper
	k.mu.Lock()
	addresses, trusted := k.addresses, k.trusted
	k.mu.Unlock()
	expiry := map[string]float64{}
	for _, t := range trusted {
		role := t.Role.String()
		expiry[role] = max(expiry[role], float64(t.Certificate.NotAfter.Unix()))
	}
	if serving := k.serving(); serving != nil {
		expiry["serving"] = float64(serving.Leaf.NotAfter.Unix())
	}
	for certificate, end := range expiry {
		out <- prometheus.MustNewConstMetric(m.expiry, prometheus.GaugeValue, end, certificate)
	}
	out <- prometheus.MustNewConstMetric(m.known, prometheus.GaugeValue, float64(len(addresses)))
}

// serving is the certificate that agents are shown, nil if there is none.
func (k *Keeper) serving() *tls.Certificate {
	serving, err := k.Serving()
	if err != nil {
		return nil // a handshake tells
	}
	return serving
}

// Status is what is kept, for CalculatorService.
func (k *Keeper) Status() *calculatorv1.Trust {
	k.mu.Lock()
	defer k.mu.Unlock()
	status := &calculatorv1.Trust{Addresses: k.addresses}
	if k.authority != nil {
		status.Secret = k.Namespace + "/" + k.Secret
	}
	if k.ConfigMap != "" {
		status.ConfigMap = k.Namespace + "/" + k.ConfigMap
	}
	for _, t := range k.trusted {
		status.Authorities = append(status.Authorities, &calculatorv1.Authority{
			Role: roles[t.Role], Subject: t.Certificate.Subject.String(),
			Fingerprint: announcement.Fingerprint(t.Certificate), ExpireTime: timestamppb.New(t.Certificate.NotAfter),
		})
	}
	if serving := k.serving(); serving != nil {
		status.ServingExpireTime = timestamppb.New(serving.Leaf.NotAfter)
	}
	return status
}

var roles = map[authority.Role]calculatorv1.AuthorityRole{
	authority.Current: calculatorv1.AuthorityRole_AUTHORITY_ROLE_CURRENT,
	authority.Next:    calculatorv1.AuthorityRole_AUTHORITY_ROLE_NEXT,
	authority.Earlier: calculatorv1.AuthorityRole_AUTHORITY_ROLE_EARLIER,
	authority.File:    calculatorv1.AuthorityRole_AUTHORITY_ROLE_FILE,
}
