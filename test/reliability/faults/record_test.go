// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/millrace-project/millrace/test/reliability/traffic"
)

// samplePeriod is how finely requests are told apart by time.
const samplePeriod = 250 * time.Millisecond

// record is what became of all requests, by time, and what happened then.
type record struct {
	traffic *traffic.Traffic
	stop    chan struct{}
	done    chan struct{}

	mu      sync.Mutex
	err     error
	began   time.Time
	samples []sample
	events  []event
	total   traffic.Report

	// examine looks at a failure when it is fresh.
	examine  func(traffic.Failure) string
	evidence []string
}

// sample is a part of the record.
type sample struct {
	from, to         time.Time
	requests, failed uint64
	longest          time.Duration
}

// event is something that was done to the cluster.
type event struct {
	name     string
	from, to time.Time
	err      error
}

// maxExamined is how many failures are looked at.
const maxExamined = 40

func startRecord(load *traffic.Traffic, examine func(traffic.Failure) string) *record {
	r := &record{traffic: load, examine: examine, stop: make(chan struct{}), done: make(chan struct{}), began: time.Now()}
	go r.run()
	return r
}

func (r *record) run() {
	defer close(r.done)
	tick := time.NewTicker(samplePeriod)
	defer tick.Stop()
	last := r.began
	for {
		get, final := r.traffic.Report, false
		select {
		case <-tick.C:
		case <-r.stop:
			get, final = r.traffic.Stop, true
		}
		report, err := get()
		now := time.Now()
		r.mu.Lock()
		if err != nil && r.err == nil {
			r.err = err
		}
		r.samples = append(r.samples, sample{last, now, report.Requests, report.Failed, report.Latency.Max()})
		r.total.Add(report)
		r.mu.Unlock()
		for _, failure := range report.Failures[:min(len(report.Failures), maxExamined-len(r.evidence))] {
			r.evidence = append(r.evidence, fmt.Sprintf("%v\n%s", failure, r.examine(failure)))
		}
		if last = now; final {
			return
		}
	}
}

// finish stops the load and returns what became of all requests.
func (r *record) finish() (*traffic.Report, error) {
	close(r.stop)
	<-r.done
	return &r.total, r.err
}

// failed is how many requests have failed so far.
func (r *record) failed() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total.Failed
}

// during does something and notes when.
func (r *record) during(name string, do func() error) error {
	from := time.Now()
	err := do()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{name, from, time.Now(), err})
	return err
}

// row is a line of the table.
type row struct {
	name             string
	times, errors    int
	spent            time.Duration
	requests, failed uint64
	longest          time.Duration
}

// table sums up by name of the event. A sample belongs to all events that it
// overlaps.
func (r *record) table() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := map[string]*row{}
	var names []string
	for _, event := range r.events {
		sum := rows[event.name]
		if sum == nil {
			sum = &row{name: event.name}
			rows[event.name] = sum
			names = append(names, event.name)
		}
		sum.times++
		if event.err != nil {
			sum.errors++
		}
		sum.spent += event.to.Sub(event.from)
		for _, s := range r.samples {
			if s.from.Before(event.to) && s.to.After(event.from) {
				sum.requests += s.requests
				sum.failed += s.failed
				sum.longest = max(sum.longest, s.longest)
			}
		}
	}
	slices.Sort(names)
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "fault\ttimes\tseconds\trequests\tfailed\tworst latency")
	for _, name := range names {
		sum := rows[name]
		fmt.Fprintf(w, "%s\t%d\t%.1f\t%d\t%d\t%v\n", name, sum.times, sum.spent.Seconds(), sum.requests, sum.failed, sum.longest.Round(time.Millisecond/10))
	}
	w.Flush()
	return text.String()
}
