// SPDX-License-Identifier: Apache-2.0

package loadgen

import (
	"math/bits"
	"time"
)

// subBits sets the precision of a histogram: 2^subBits buckets an octave.
const subBits = 6

// histogram counts durations in buckets no wider than 1/64 of their value.
type histogram struct {
	counts [(64 - subBits) << subBits]uint64
	total  uint64
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

func (h *histogram) record(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.total++
}

// quantile returns the duration that a share q of the records does not exceed.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(q * float64(h.total))
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen > rank {
			return lowerBound(i)
		}
	}
	return 0
}
