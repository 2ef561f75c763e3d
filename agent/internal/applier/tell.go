// SPDX-License-Identifier: Apache-2.0

package applier

import (
	"slices"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/agent/internal/held"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// settle notes that the batches of commits are programmed.
func (a *Applier) settle(commits []Commit) {
	now := time.Now()
	var latency time.Duration
	for _, c := range commits {
		if !c.Trigger.IsZero() {
			latency = max(0, now.Sub(c.Trigger))
			a.metrics.Programming.Observe(latency.Seconds())
		}
	}
	a.metrics.ProgrammedRevision.Set(float64(a.revision))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken = false
	a.status.Programmed = a.revision
	if latency > 0 {
		a.status.LastLatency = latency
	}
	a.idle.Broadcast()
}

// note takes in the last result.
func (a *Applier) note() {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := append(append([]*dataplanev1.ResourceError{}, a.extra...), a.last.Errors...)
	now := map[held.Name]struct{}{}
	counts := map[string]float64{}
	for _, e := range all {
		name := held.NameOf(e.GetName())
		now[name] = struct{}{}
		counts[e.GetReason()]++
		if _, known := a.failing[name]; !known {
			a.failing[name] = a.revision
			a.log.Warn("resource not programmed", zap.Stringer("resource", name), zap.String("reason", e.GetReason()),
				zap.String("field", e.GetField()), zap.String("message", e.GetMessage()))
		}
	}
	for name := range a.failing {
		if _, still := now[name]; !still {
			delete(a.failing, name)
		}
	}
	a.metrics.ResourceErrors.Reset()
	for reason, n := range counts {
		a.metrics.ResourceErrors.WithLabelValues(reason).Set(n)
	}
	a.status.Errors = all[:min(len(all), maxErrors)]
	a.status.ErrorCount = len(all)
	a.status.Problems = slices.Clone(a.last.Report.GetProblems())
	for _, problem := range []string{a.journal.Fault(), a.unlogged} {
		if problem != "" {
			a.status.Problems = append(a.status.Problems, problem)
		}
	}
}

// tell acknowledges and reports.
func (a *Applier) tell() {
	a.mu.Lock()
	status := a.status
	a.mu.Unlock()
	report := &dataplanev1.Report{
		AttachedEndpoints: a.last.Report.GetAttachedEndpoints(), Problems: status.Problems,
		LocalEndpoints: a.last.Report.GetLocalEndpoints(),
	}
	ack := &dataplanev1.Ack{
		ProgrammedRevision: a.revision,
		Errors:             status.Errors,
		ErrorCount:         uint32(status.ErrorCount),
		ProgrammedTime:     timestamppb.Now(),
	}
	for _, since := range a.failing {
		if ack.LowestFailedRevision == 0 || since < ack.LowestFailedRevision {
			ack.LowestFailedRevision = max(since, 1)
		}
	}
	a.withStream(func(s Stream) {
		s.Report(report)
		if a.revision != 0 {
			s.Acknowledge(ack)
		}
	})
}

func (a *Applier) withStream(f func(Stream)) {
	a.mu.Lock()
	s := a.stream
	a.mu.Unlock()
	if s != nil {
		f(s)
	}
}
