// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/bench/loadgen"
)

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for _, c := range []struct{ q, want float64 }{{0, 1}, {0.5, 3}, {0.99, 4.96}, {1, 5}} {
		if got := quantile(values, c.q); got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("quantile %v is %v, want %v", c.q, got, c.want)
		}
	}
	if values[0] != 5 {
		t.Error("quantile reordered its argument")
	}
	if median([]float64{math.NaN(), 7, math.Inf(1)}) != 7 {
		t.Error("the median counts what is not a number")
	}
	if median(nil) != 0 {
		t.Error("the median of nothing is not 0")
	}
}

// TestTrafficResults checks that ratios are taken within rounds: the machine is
// twice as slow in the second one.
func TestTrafficResults(t *testing.T) {
	config := Config{Services: 10_000}
	bare, small, large := &system{kind: bareNetwork}, &system{kind: millrace}, &system{kind: millrace, large: true}
	nft := &system{kind: kubeProxyNftables}
	run := func(rates ...float64) []loadgen.Result {
		var all []loadgen.Result
		for _, rate := range rates {
			all = append(all, loadgen.Result{Operations: uint64(rate), Seconds: 1, P50: time.Millisecond, P99: time.Second, CPUSeconds: 1})
		}
		return all
	}
	var r results
	r.addTraffic(config, scenario{path: paths[0], mode: loadgen.ModeConnect}, []*system{bare, small, large, nft}, map[*system][]loadgen.Result{
		bare: run(1000, 500, 1000), small: run(900, 450, 900), large: run(450, 225, 450), nft: run(500, 250, 500),
	})
	got := map[string]float64{}
	for _, line := range r.entries() {
		if line.Unit == "1/s" && line.Peer != "" {
			got[line.Name[strings.LastIndex(line.Name, ", ")+2:]+" to "+line.Peer] = line.Ratio
		}
	}
	for name, want := range map[string]float64{
		"10 services to bare network":             0.9,
		"10 services to kube-proxy nftables":      1.8,
		"10000 services to bare network":          0.45,
		"10000 services to Millrace, 10 services": 0.5,
	} {
		if ratio := got[name]; ratio < want-1e-9 || ratio > want+1e-9 {
			t.Errorf("%s: ratio %v, want %v", name, ratio, want)
		}
	}
	if len(got) != 4 {
		t.Errorf("there are %d ratios: %v", len(got), got)
	}

	path := filepath.Join(t.TempDir(), "build", "bench.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	if err := json.Unmarshal(data, &lines); err != nil || len(lines) != len(r.entries()) {
		t.Fatalf("the file has %d lines, %v; want %d", len(lines), err, len(r.entries()))
	}
	for _, field := range []string{"name", "value", "unit", "peer", "ratio"} {
		if _, ok := lines[0][field]; !ok {
			t.Errorf("a line has no %s: %v", field, lines[0])
		}
	}
}

// TestNothingAnswered checks that a run without a single answer can be written.
func TestNothingAnswered(t *testing.T) {
	bare, small := &system{kind: bareNetwork}, &system{kind: millrace}
	var r results
	r.addTraffic(Config{}, scenario{path: paths[0], mode: loadgen.ModeConnect}, []*system{bare, small}, map[*system][]loadgen.Result{
		bare: {{Operations: 10, Seconds: 1, P50: 1, P99: 1, CPUSeconds: 1}}, small: {{Seconds: 1}},
	})
	if err := r.write(filepath.Join(t.TempDir(), "bench.json")); err != nil {
		t.Error(err)
	}
	if r[0].value != 0 || r[0].peers[0].ratio != 0 {
		t.Errorf("the rate is %+v, want 0", r[0])
	}
}

func TestProgramResults(t *testing.T) {
	var r results
	out := "goos: linux\nBenchmarkEstablished/v4/pod-ingress/plain-2 \t 1\t 0 ns/op\t 55.0 ns/empty\t 120.0 ns/packet\n" +
		"BenchmarkEstablished/v4/pod-ingress/plain-2 \t 1\t 0 ns/op\t 54.0 ns/empty\t 140.0 ns/packet\nPASS\n"
	if err := r.addPrograms(programBenchmarks[1], out); err != nil {
		t.Fatal(err)
	}
	if len(r) != 1 || r[0].value != 130 || !strings.HasSuffix(r[0].name, "v4 pod-ingress plain") {
		t.Errorf("got %+v", r)
	}
	if err := r.addPrograms(programBenchmarks[1], "--- SKIP: BenchmarkEstablished\nPASS\n"); err == nil {
		t.Error("output without figures is no error")
	}
}

func TestArguments(t *testing.T) {
	for args, want := range map[string]string{
		"-only walking":     `"walking" is not one of traffic, changes, start, programs`,
		"-peers nobody":     `"nobody" is not one of bare, millrace`,
		"-family 5":         "must be 4 or 6",
		"-scenario flying":  "no traffic has that",
		"-rounds 0":         "must be at least 1",
		"more":              `unexpected argument "more"`,
		"-services 1000000": "10 to 60000",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", args, err, want)
		}
	}
	config, err := parse([]string{"-quick"})
	if err != nil || config.Rounds != 3 || len(config.Peers) == 0 {
		t.Errorf("-quick gives %+v, %v", config, err)
	}
}
