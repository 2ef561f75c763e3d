// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/access"
)

// metrics counts reviews and refusals.
type metrics struct {
	reviews *prometheus.CounterVec // kind, result
	hits    *prometheus.CounterVec // kind, age
	denied  *prometheus.CounterVec // method, reason
}

// hits count remembered answers.
type hits struct{ fresh, stale prometheus.Counter }

func newMetrics(registry prometheus.Registerer) *metrics {
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "calculator", Name: name, Help: help}, labels)
		registry.MustRegister(v)
		return v
	}
	m := &metrics{
		reviews: counters("reviews_total", "Questions to the API server about callers: whose a token is, what an account may.", "kind", "result"),
		hits:    counters("review_hits_total", "Reviews that a remembered answer saved: a fresh one, or a stale one because the API server is away.", "kind", "age"),
		denied:  counters("denied_calls_total", "Calls that were refused before they reached their RPC.", "method", "reason"),
	}
	for _, kind := range []string{"token", "access"} { // series exist at 0
		for _, result := range []string{"accepted", "rejected", "failed"} {
			m.reviews.WithLabelValues(kind, result)
		}
		m.remembered(kind)
	}
	return m
}

func (m *metrics) remembered(kind string) hits {
	return hits{fresh: m.hits.WithLabelValues(kind, "fresh"), stale: m.hits.WithLabelValues(kind, "stale")}
}

const (
	// denialEvery is how often the same refusal of the same machine is logged, and
	// maxDenials how many are told apart: nobody can fill the log.
	denialEvery = time.Minute
	maxDenials  = 1 << 10
)

// denials logs and counts refused calls.
type denials struct {
	log     *zap.Logger
	metrics *metrics

	mu     sync.Mutex
	logged map[string]time.Time
}

func newDenials(log *zap.Logger, m *metrics) *denials {
	return &denials{log: log, metrics: m, logged: map[string]time.Time{}}
}

// note is told of each refused call.
func (d *denials) note(ctx context.Context, method string, caller access.Caller, err error) {
	reason, peer := access.ReasonOf(err), host(ctx)
	if reason == "" {
		return // the caller has gone
	}
	d.metrics.denied.WithLabelValues(method, reason).Inc()
	if !d.due(strings.Join([]string{peer, method, reason}, " "), time.Now()) {
		return
	}
	d.log.Warn("call refused", zap.String("method", method), zap.String("peer", peer),
		zap.Stringer("caller", caller), zap.String("reason", reason), zap.Error(err))
}

func (d *denials) due(key string, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.logged[key]; ok && now.Sub(last) < denialEvery {
		return false
	}
	if len(d.logged) >= maxDenials {
		for key, last := range d.logged {
			if now.Sub(last) >= denialEvery {
				delete(d.logged, key)
			}
		}
		if len(d.logged) >= maxDenials {
			return false
		}
	}
	d.logged[key] = now
	return true
}

// KindReview is the kind of problems with reviews, as operators see it.
const KindReview model.Kind = "Review"

// trouble tells of reviews that fail, until one succeeds.
type trouble struct {
	mu   sync.Mutex
	set  func([]problem.Problem)
	last string
}

// reviewed is told how a question to the API server went.
func (a *Authenticator) reviewed(err error) {
	message := ""
	if err != nil {
		message = "agents and readers whose credentials were not reviewed before are refused, because the API server does not answer: " + err.Error()
	}
	a.trouble.mu.Lock()
	defer a.trouble.mu.Unlock()
	if message == a.trouble.last || a.trouble.set == nil {
		return
	}
	a.trouble.last = message
	if message == "" {
		a.trouble.set(nil)
		return
	}
	a.trouble.set([]problem.Problem{{Object: model.Key{Kind: KindReview, Name: "credentials"}, Message: message}})
}
