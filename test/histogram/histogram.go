// SPDX-License-Identifier: Apache-2.0

// Package histogram counts durations, precisely enough for quantiles and
// cheaply enough for every request of a load.
package histogram

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"time"
)

// subBits sets the precision of a histogram: 2^subBits buckets an octave.
const subBits = 6

// Histogram counts durations in buckets no wider than 1/64 of their value. The
// zero value is empty.
type Histogram struct {
	counts [(64 - subBits) << subBits]uint64
	total  uint64
	max    time.Duration
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - 1<<subBits
}

func lowerBound(bucket int) time.Duration {
	if bucket < 1<<subBits {
		return time.Duration(bucket)
	}
	shift := bucket>>subBits - 1
	return time.Duration((uint64(bucket&(1<<subBits-1)) + 1<<subBits) << shift)
}

// Record counts a duration.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.total++
	h.max = max(h.max, d)
}

// Total is how many durations were recorded.
func (h *Histogram) Total() uint64 { return h.total }

// Max is the longest of them.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile returns the duration that a share q of the records does not exceed.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen > rank {
			return lowerBound(i)
		}
	}
	return 0
}

// Add counts what another histogram has counted.
func (h *Histogram) Add(other *Histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// wire is a histogram as JSON: the buckets that are not empty.
type wire struct {
	Counts map[int]uint64 `json:"counts,omitempty"`
	Max    time.Duration  `json:"max,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	w := wire{Counts: map[int]uint64{}, Max: h.max}
	for i, n := range h.counts {
		if n > 0 {
			w.Counts[i] = n
		}
	}
	return json.Marshal(w)
}

// UnmarshalJSON implements json.Unmarshaler.
func (h *Histogram) UnmarshalJSON(data []byte) error {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return err
	}
	*h = Histogram{max: w.Max}
	for i, n := range w.Counts {
		if i < 0 || i >= len(h.counts) {
			return fmt.Errorf("histogram: there is no bucket %d", i)
		}
		h.counts[i] = n
		h.total += n
	}
	return nil
}
