// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/millrace-project/millrace/test/bench/loadgen"
)

// row is one line of the table: what was measured, of Millrace and its peers.
type row struct {
	name, unit string
	value      float64
	peers      []peer
}

// peer is what Millrace is compared with in a row.
type peer struct {
	name  string
	value float64
	// ratio is Millrace's value over the peer's: the median of the ratios of
	// the rounds, not the ratio of the medians.
	ratio float64
}

// results are the rows in the order they were measured.
type results []row

// add appends a value that has no peer.
func (r *results) add(name string, value float64, unit string) {
	*r = append(*r, row{name: name, unit: unit, value: value})
}

// compare adds a peer to a row, by the values of each round.
func (r *row) compare(name string, values, peerValues []float64) {
	var ratios []float64
	for i := range values {
		if ratio := values[i] / peerValues[i]; finite(ratio) {
			ratios = append(ratios, ratio)
		}
	}
	r.peers = append(r.peers, peer{name: name, value: median(peerValues), ratio: median(ratios)})
}

// smallMillrace is what large clusters are compared with.
var smallMillrace = fmt.Sprintf("Millrace, %d services", smallServices)

// columns of the table besides Millrace's own.
var columns = []string{
	kindNames[bareNetwork], kindNames[kubeProxyNftables], kindNames[kubeProxyIptables], smallMillrace,
}

// addTraffic appends a scenario: Millrace of each size against the peers that
// were measured.
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
			return all // not a number where nothing was answered
		}
		name := scenario.name()
		if m.suffix != "" {
			name += ", " + m.suffix
		}
		for _, large := range []bool{false, true} {
			s := find(millrace, large)
			if s == nil {
				r.addPeers(name, m.unit, config, systems, large, values)
				continue
			}
			line := row{name: fmt.Sprintf("%s, %d services", name, s.services(config)), unit: m.unit, value: median(values(s))}
			if bare := find(bareNetwork, false); bare != nil {
				line.compare(kindNames[bareNetwork], values(s), values(bare))
			}
			for _, k := range []kind{kubeProxyNftables, kubeProxyIptables} {
				if other := find(k, large); other != nil {
					line.compare(kindNames[k], values(s), values(other))
				}
			}
			if small := find(millrace, false); large && small != nil {
				line.compare(smallMillrace, values(s), values(small))
			}
			*r = append(*r, line)
		}
	}
}

// addPeers appends the systems of one size by themselves, for runs that leave
// Millrace out.
func (r *results) addPeers(name, unit string, config Config, systems []*system, large bool, values func(*system) []float64) {
	for _, s := range systems {
		if s.large == large {
			r.add(fmt.Sprintf("%s, %d services, %s", name, s.services(config), kindNames[s.kind]), median(values(s)), unit)
		}
	}
}

// median of the values that are numbers; 0 of none.
func median(values []float64) float64 {
	return quantile(slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return !finite(v) }), 0.5)
}

// finite tells whether a value can be put into a table.
func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

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

// print writes the table: each peer's value, and Millrace's ratio to it.
func (r results) print(out io.Writer) {
	width := 0
	for _, line := range r {
		width = max(width, len(line.name))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%-*s\tunit\tMillrace\t", width, "")
	for _, column := range columns {
		fmt.Fprintf(w, "%s\tratio\t", column)
	}
	fmt.Fprintln(w)
	for _, line := range r {
		fmt.Fprintf(w, "%-*s\t%s\t%s\t", width, line.name, line.unit, significant(line.value))
		for _, column := range columns {
			i := slices.IndexFunc(line.peers, func(p peer) bool { return p.name == column })
			if i < 0 {
				fmt.Fprint(w, "\t\t")
				continue
			}
			fmt.Fprintf(w, "%s\t%.3f\t", significant(line.peers[i].value), line.peers[i].ratio)
		}
		fmt.Fprintln(w)
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

// entry is one figure of the results file.
type entry struct {
	// Name of what was measured; it ends in the peer's name if Value is the
	// peer's.
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Peer is what Ratio compares Value with, empty if with nothing.
	Peer  string  `json:"peer"`
	Ratio float64 `json:"ratio"`
}

// entries are the rows as the file has them.
func (r results) entries() []entry {
	all := []entry{}
	for _, line := range r {
		if len(line.peers) == 0 {
			all = append(all, entry{Name: line.name, Value: line.value, Unit: line.unit})
		}
		for _, p := range line.peers {
			all = append(all, entry{Name: line.name, Value: line.value, Unit: line.unit, Peer: p.name, Ratio: p.ratio},
				entry{Name: line.name + ", " + p.name, Value: p.value, Unit: line.unit})
		}
	}
	return all
}

// write writes the results as JSON.
func (r results) write(path string) error {
	data, err := json.MarshalIndent(r.entries(), "", "  ")
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
