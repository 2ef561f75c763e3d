// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"fmt"
	"strings"
	"time"

	"github.com/millrace-project/millrace/test/histogram"
	"github.com/millrace-project/millrace/test/probe"
)

// Report is what became of requests. The zero value is empty.
type Report struct {
	// Requests that ended, the failed ones included.
	Requests, Failed uint64
	// LostSYNs is how many of the failed ones were connections that came
	// about at a later attempt only.
	LostSYNs uint64
	// Repeated is how many UDP requests were sent once more because their
	// backend left.
	Repeated uint64
	// Retransmitted is how many segments TCP sent once more.
	Retransmitted uint64
	// Connect is the longest time that opening a socket took.
	Connect time.Duration
	// Latency of the requests that succeeded.
	Latency histogram.Histogram
	// Failures describes the first ones.
	Failures []Failure
	// Streams counts the requests of each stream.
	Streams map[string]uint64
}

// Failure is a failed request.
type Failure struct {
	// Host that made it, Stream that it belongs to.
	Host, Stream string
	probe.FailedRequest
}

func (f Failure) String() string {
	text := fmt.Sprintf("%s %s: %s, from %s (socket %d, request %d): %s after %v",
		f.Began.Format("15:04:05.000"), f.Host, f.Stream, f.Local, f.Socket, f.ID, f.Failure, f.Ended.Sub(f.Began).Round(time.Microsecond))
	if f.Detail != "" {
		text += ": " + f.Detail
	}
	return text
}

// maxFailures is how many failures a report describes.
const maxFailures = 1000

func (r *Report) addProbe(host string, report probe.Report) {
	if r.Streams == nil {
		r.Streams = map[string]uint64{}
	}
	for _, stream := range report.Streams {
		r.Requests += stream.Requests
		r.Failed += stream.Failed
		r.Repeated += stream.Repeated
		r.Retransmitted += stream.Retransmitted
		r.Connect = max(r.Connect, stream.Connect)
		r.Latency.Add(stream.Latency)
		r.Streams[stream.Name] += stream.Requests
		for _, failure := range stream.Failures {
			r.addFailure(Failure{host, stream.Name, failure})
		}
	}
}

func (r *Report) addFailure(failure Failure) {
	if failure.Failure == probe.LostSYN {
		r.LostSYNs++
	}
	if len(r.Failures) < maxFailures {
		r.Failures = append(r.Failures, failure)
	}
}

// Add adds what became of later requests.
func (r *Report) Add(later *Report) {
	if r.Streams == nil {
		r.Streams = map[string]uint64{}
	}
	r.Requests += later.Requests
	r.Failed += later.Failed
	r.LostSYNs += later.LostSYNs
	r.Repeated += later.Repeated
	r.Retransmitted += later.Retransmitted
	r.Connect = max(r.Connect, later.Connect)
	r.Latency.Add(&later.Latency)
	for name, requests := range later.Streams {
		r.Streams[name] += requests
	}
	r.Failures = append(r.Failures, later.Failures[:min(len(later.Failures), maxFailures-len(r.Failures))]...)
}

// String is a summary in one line.
func (r *Report) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d requests, %d failed, latency p50 %v p99 %v max %v, longest connect %v",
		r.Requests, r.Failed, round(r.Latency.Quantile(0.5)), round(r.Latency.Quantile(0.99)), round(r.Latency.Max()), round(r.Connect))
	fmt.Fprintf(&text, ", %d lost SYNs, %d segments sent again, %d UDP requests repeated", r.LostSYNs, r.Retransmitted, r.Repeated)
	return text.String()
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
