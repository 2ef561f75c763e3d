// SPDX-License-Identifier: Apache-2.0

// Package bench measures Millrace side by side with its peers: the bare network
// (the client dials the pod itself, nothing translates), and kube-proxy in its
// nftables and iptables modes with a real API server.
//
// Each peer has a cluster of its own, all alike and all up at the same time.
// A figure is measured in rounds; a round measures every peer once, one right
// after the other, so that what disturbs the machine disturbs all of them.
// Ratios are taken within a round, and medians over the rounds are reported.
package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/millrace-project/millrace/test/testbed"
)

// Config says what to measure and how long.
type Config struct {
	// Output is the file that the results are written to as JSON.
	Output string
	// Only names the parts to run, all if empty; see parts.
	Only []string
	// Peers names the systems to measure traffic of, all if empty.
	Peers []string
	// Scenario keeps the traffic to scenarios whose names contain it.
	Scenario string
	// Rounds is how often each figure is measured.
	Rounds int
	// Duration is the time of one run of traffic.
	Duration time.Duration
	// Services is the number of services of the large clusters.
	Services int
	// Changes is how many changes to measure the programming of.
	Changes int
	// Family of the addresses dialled, 4 or 6.
	Family int
	// Connections of a closed loop.
	Connections int
}

// part is a group of measurements that can be run alone.
type part struct {
	name string
	run  func(context.Context, *run) error
}

// parts in the order they run.
var parts = []part{
	{"traffic", measureTraffic},
	{"changes", measureChanges},
	{"start", measureStart},
	{"programs", measurePrograms},
}

// run is one run of the benchmark.
type run struct {
	Config
	results  results
	log      io.Writer
	begin    time.Time
	binaries testbed.Binaries
}

// progress tells what is being done, with the time since the beginning.
func (r *run) progress(format string, args ...any) {
	fmt.Fprintf(r.log, "[%4.0f s] %s\n", time.Since(r.begin).Seconds(), fmt.Sprintf(format, args...))
}

// Main runs the benchmark, or one end of its traffic, by command line.
func Main(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "serve" {
		return serveMain(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "load" {
		return loadMain(args[1:], out)
	}
	config, err := parse(args)
	if err != nil {
		return err
	}
	r := &run{Config: config, log: os.Stderr, begin: time.Now()}
	var failed error
	for _, p := range parts {
		if len(config.Only) > 0 && !slices.Contains(config.Only, p.name) {
			continue
		}
		if err := p.run(ctx, r); err != nil {
			// What the other parts measure stays worth reading.
			failed = errors.Join(failed, fmt.Errorf("measuring %s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	r.results.print(out)
	if err := r.results.write(config.Output); err != nil {
		failed = errors.Join(failed, err)
	}
	return failed
}

func parse(args []string) (Config, error) {
	config := Config{}
	flags := flag.NewFlagSet("millrace-bench", flag.ContinueOnError)
	names := make([]string, len(parts))
	for i, p := range parts {
		names[i] = p.name
	}
	flags.StringVar(&config.Output, "output", "build/bench.json", "file for the results")
	quick := flags.Bool("quick", false, "a few minutes: fewer and shorter rounds, no large kube-proxy clusters")
	only := flags.String("only", "", "comma-separated parts to run: "+strings.Join(names, ", ")+" (default all)")
	peers := flags.String("peers", "", "comma-separated systems to measure traffic of: "+strings.Join(systemNames(), ", ")+" (default all)")
	flags.StringVar(&config.Scenario, "scenario", "", "measure only traffic whose name in the table contains this")
	flags.IntVar(&config.Rounds, "rounds", 5, "rounds of traffic")
	flags.DurationVar(&config.Duration, "duration", 800*time.Millisecond, "time of one run of traffic")
	flags.IntVar(&config.Services, "services", 10_000, "services of the large clusters")
	flags.IntVar(&config.Changes, "changes", 1000, "changes to measure, at 50 a second")
	flags.IntVar(&config.Family, "family", 4, "IP family of the addresses dialled: 4 or 6")
	flags.IntVar(&config.Connections, "connections", 16, "connections of a closed loop")
	if err := flags.Parse(args); err != nil {
		return Config{}, err
	}
	if flags.NArg() > 0 {
		return Config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if config.Family != 4 && config.Family != 6 {
		return Config{}, fmt.Errorf("-family %d: must be 4 or 6", config.Family)
	}
	if config.Rounds < 1 || config.Services < smallServices || config.Services > 60_000 {
		return Config{}, fmt.Errorf("-rounds must be at least 1, -services %d to 60000", smallServices)
	}
	if !slices.ContainsFunc(scenarios(), config.wants) {
		return Config{}, fmt.Errorf("-scenario %q: no traffic has that in its name", config.Scenario)
	}
	var err error
	if config.Only, err = list("-only", *only, names); err != nil {
		return Config{}, err
	}
	if config.Peers, err = list("-peers", *peers, systemNames()); err != nil {
		return Config{}, err
	}
	if *quick {
		config.Rounds, config.Duration, config.Changes = 3, 500*time.Millisecond, 250
		if len(config.Peers) == 0 {
			config.Peers = quickSystems()
		}
	}
	return config, nil
}

// list splits a comma-separated flag whose items must be among the allowed.
func list(name, value string, allowed []string) ([]string, error) {
	if value == "" {
		return nil, nil
	}
	items := strings.Split(value, ",")
	for _, item := range items {
		if !slices.Contains(allowed, item) {
			return nil, fmt.Errorf("%s: %q is not one of %s", name, item, strings.Join(allowed, ", "))
		}
	}
	return items, nil
}
