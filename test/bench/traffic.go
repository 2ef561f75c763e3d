// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/millrace-project/millrace/test/bench/loadgen"
)

// scenario is one path used in one way.
type scenario struct {
	path path
	mode loadgen.Mode
}

// scenarios are measured one after the other, each over all systems.
func scenarios() []scenario {
	var all []scenario
	for _, mode := range []loadgen.Mode{loadgen.ModeConnect, loadgen.ModeRequest, loadgen.ModeStream} {
		for _, p := range paths {
			all = append(all, scenario{path: p, mode: mode})
		}
	}
	return all
}

// modeNames are what the modes are called in the results.
var modeNames = map[loadgen.Mode]string{
	loadgen.ModeConnect: "connect-request-close",
	loadgen.ModeRequest: "request-response",
	loadgen.ModeStream:  "throughput",
}

func (s scenario) name() string { return modeNames[s.mode] + ", " + s.path.name }

// wants tells whether a scenario is to be measured.
func (c Config) wants(s scenario) bool { return strings.Contains(s.name(), c.Scenario) }

// measureTraffic measures rates, latencies and the use of CPU.
func measureTraffic(ctx context.Context, r *run) (err error) {
	f, err := startFleet(ctx, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	for _, scenario := range scenarios() {
		if !r.wants(scenario) {
			continue
		}
		r.progress("%s: %d rounds of %d systems", scenario.name(), r.Rounds, len(f.systems))
		runs, err := measureScenario(ctx, r, f.systems, scenario)
		if err != nil {
			return err
		}
		r.results.addTraffic(r.Config, scenario, f.systems, runs)
	}
	return nil
}

// measureScenario returns the results of each system, by round. The systems
// take turns in going first.
func measureScenario(ctx context.Context, r *run, systems []*system, scenario scenario) (map[*system][]loadgen.Result, error) {
	runs := map[*system][]loadgen.Result{}
	for round := range r.Rounds {
		for i := range systems {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			s := systems[(round+i)%len(systems)]
			result, err := runLoad(scenario.path.client(s.cluster), loadgen.Load{
				Mode: scenario.mode, Target: s.target(scenario.path, r.Family),
				Connections: r.Connections, Warmup: r.Duration / 10, Duration: r.Duration,
			})
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", s.name, scenario.name(), err)
			}
			runs[s] = append(runs[s], result)
		}
	}
	return runs, nil
}

// metric is something that is read off a result.
type metric struct {
	suffix string
	unit   string
	value  func(loadgen.Result) float64
}

// latency of a run in microseconds; not a number if nothing was answered.
func latency(r loadgen.Result, d time.Duration) float64 {
	if r.Operations == 0 {
		return math.NaN()
	}
	return float64(d.Nanoseconds()) / 1e3
}

// metrics of a mode; the first one is its rate.
func metrics(mode loadgen.Mode) []metric {
	if mode == loadgen.ModeStream {
		return []metric{
			{"", "Gbit/s", func(r loadgen.Result) float64 { return r.Rate() * 8 / 1e9 }},
			{"CPU", "s/GB", func(r loadgen.Result) float64 { return r.CPUSeconds / float64(r.Operations) * 1e9 }},
		}
	}
	return []metric{
		{"", "1/s", loadgen.Result.Rate},
		{"p50", "us", func(r loadgen.Result) float64 { return latency(r, r.P50) }},
		{"p99", "us", func(r loadgen.Result) float64 { return latency(r, r.P99) }},
		{"CPU", "us", func(r loadgen.Result) float64 { return r.CPUSeconds / float64(r.Operations) * 1e6 }},
	}
}
