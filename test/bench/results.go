// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/millrace-project/millrace/test/bench/loadgen"
)

// result is one line of the results.
type result struct {
	// Name of what was measured.
	Name string `json:"name"`
	// Value of Millrace, or of the peer where Name ends in its name.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer is what Ratio compares with, empty if with nothing.
	Peer string `json:"peer"`
	// Ratio is Millrace's value over the peer's, the median of the ratios of
	// the rounds; 0 without a peer.
	Ratio float64 `json:"ratio"`
}

// results in the order they were measured.
type results []result

// add appends a value that has no peer.
func (r *results) add(name string, value float64, unit string) {
	*r = append(*r, result{Name: name, Value: value, Unit: unit})
}

// addRatio appends a value with the medians over the rounds of it and of its
// ratio to a peer's.
func (r *results) addRatio(name, unit, peer string, values, peerValues []float64) {
	ratios := make([]float64, len(values))
	for i := range values {
		ratios[i] = values[i] / peerValues[i]
	}
	*r = append(*r, result{Name: name, Value: median(values), Unit: unit, Peer: peer, Ratio: median(ratios)})
}

// addTraffic appends a scenario: Millrace of each size against every peer that
// was measured, and the peers' own values.
func (r *results) addTraffic(config Config, scenario scenario, systems []*system, runs map[*system][]loadgen.Result) {
	find := func(k kind, large bool) *system {
		for _, s := range systems {
			if s.kind == k && s.large == large {
				return s
			}
		}
		return nil
	}
	for _, m := range metrics(scenario.mode) {
		values := func(s *system) []float64 {
			var all []float64
			for _, run := range runs[s] {
				all = append(all, m.value(run))
			}
			return all
		}
		name := scenario.name()
		if m.suffix != "" {
			name += ", " + m.suffix
		}
		for _, s := range systems {
			sized := fmt.Sprintf("%s, %d services", name, s.services(config))
			switch {
			case s.kind == bareNetwork:
				r.add(name+", "+kindNames[s.kind], median(values(s)), m.unit)
				continue
			case s.kind != millrace:
				r.add(sized+", "+kindNames[s.kind], median(values(s)), m.unit)
				continue
			}
			if bare := find(bareNetwork, false); bare != nil {
				r.addRatio(sized, m.unit, kindNames[bareNetwork], values(s), values(bare))
			} else {
				r.add(sized, median(values(s)), m.unit)
			}
			for _, k := range []kind{kubeProxyNftables, kubeProxyIptables} {
				if peer := find(k, s.large); peer != nil {
					r.addRatio(sized, m.unit, kindNames[k], values(s), values(peer))
				}
			}
			if small := find(millrace, false); s.large && small != nil {
				r.addRatio(sized, m.unit, fmt.Sprintf("Millrace, %d services", smallServices), values(s), values(small))
			}
		}
	}
}

// median of the values; 0 of none.
func median(values []float64) float64 { return quantile(values, 0.5) }

// quantile returns the value that a share q of the values does not exceed,
// interpolated between two.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// print writes the table.
func (r results) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "What\tvalue\tunit\tratio\tto\t")
	for _, line := range r {
		ratio := ""
		if line.Peer != "" {
			ratio = fmt.Sprintf("%.3f", line.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", line.Name, significant(line.Value), line.Unit, ratio, line.Peer)
	}
	w.Flush()
}

// significant prints a number with as many digits as are worth reading.
func significant(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return strings.TrimSuffix(fmt.Sprintf("%.3f", v), ".000")
}

// write writes the results as JSON.
func (r results) write(path string) error {
	if r == nil {
		r = results{}
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return nil
}
