// SPDX-License-Identifier: Apache-2.0

package loadgen

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// ticksPerSecond is USER_HZ, which is 100 on every architecture Linux runs on
// today.
const ticksPerSecond = 100

// busySeconds returns how long all cores of the machine together were not
// idle. It is the machine's and not a process's, because the work of the
// network stack is booked on whoever was interrupted by it.
func busySeconds() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading CPU times: %w", err)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 8 || string(fields[0]) != "cpu" {
		return 0, fmt.Errorf("reading CPU times: unexpected line %q", line)
	}
	var ticks uint64
	// user, nice, system, irq, softirq; 4 and 5 are idle and iowait.
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(string(fields[i]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading CPU times: %w", err)
		}
		ticks += n
	}
	return float64(ticks) / ticksPerSecond, nil
}
