// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// CoarseNow is the clock that records of flows and affinity expire by, in
// nanoseconds: the programs' bpf_ktime_get_coarse_ns.
func CoarseNow() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		panic(fmt.Sprintf("read CLOCK_MONOTONIC_COARSE: %v", err)) // cannot fail on Linux
	}
	return uint64(ts.Nano())
}
