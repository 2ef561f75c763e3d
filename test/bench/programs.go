// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// programBenchmark is a benchmark of the bpf module that measures programs by
// themselves.
type programBenchmark struct {
	pkg, name, times string
	// only is what to run of it, all if empty.
	only string
	// metric is the unit that it reports the figure in.
	metric string
	// title gives a sub-benchmark its name in the results.
	title func(name string) string
}

var programBenchmarks = []programBenchmark{
	{
		pkg: "./bpf", name: "BenchmarkHooks", only: "/^connect$", times: "20000x", metric: "ns/run",
		title: func(name string) string {
			return "socket hook by bpf_stats, " + strings.ReplaceAll(name, "/", " ")
		},
	}, {
		pkg: "./bpf/narrative", name: "BenchmarkEstablished", times: "1x", metric: "ns/packet",
		title: func(name string) string {
			return "established packet, over the empty program, " + strings.ReplaceAll(name, "/", " ")
		},
	},
}

// measurePrograms measures the connect hook in a cluster, then runs the bpf
// module's own benchmarks and takes their figures.
func measurePrograms(ctx context.Context, r *run) error {
	if err := measureHook(ctx, r); err != nil {
		return err
	}
	for _, benchmark := range programBenchmarks {
		r.progress("%s of %s", benchmark.name, benchmark.pkg)
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^"+benchmark.name+"$"+benchmark.only,
			"-benchtime", benchmark.times, "-count", strconv.Itoa(min(r.Rounds, 3)), benchmark.pkg)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("running %s: %w:\n%s", benchmark.name, err, out)
		}
		if err := r.results.addPrograms(benchmark, string(out)); err != nil {
			return err
		}
	}
	return nil
}

// benchmarkLine is a line of the go command's output: the benchmark's name
// without the number of cores, and its figures.
var benchmarkLine = regexp.MustCompile(`(?m)^(Benchmark\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// addPrograms appends the medians of a benchmark's output.
func (r *results) addPrograms(benchmark programBenchmark, out string) error {
	var names []string
	values := map[string][]float64{}
	for _, line := range benchmarkLine.FindAllStringSubmatch(out, -1) {
		title := benchmark.title(strings.TrimPrefix(line[1], benchmark.name+"/"))
		fields := strings.Fields(line[2])
		for i := 0; i+1 < len(fields); i += 2 {
			if fields[i+1] != benchmark.metric {
				continue
			}
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return fmt.Errorf("reading the output of %s: %w", benchmark.name, err)
			}
			if values[title] == nil {
				names = append(names, title)
			}
			values[title] = append(values[title], value)
		}
	}
	if len(names) == 0 {
		return errors.Join(fmt.Errorf("%s printed no figures in %s", benchmark.name, benchmark.metric), errors.New(out))
	}
	for _, name := range names {
		r.add(name, median(values[name]), "ns")
	}
	return nil
}
