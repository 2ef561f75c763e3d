// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a map of the wanted size would take too much of the
// node's memory, or is more than the kernel makes.
var ErrTooLarge = errors.New("too large")

// What the kernel allocates for hash maps: a bucket for each entry, rounded up
// to a power of two, and what it keeps beside key and value of an entry.
const (
	bucketBytes  = 16
	elementBytes = 48
	// maxBuckets is where the kernel answers E2BIG.
	maxBuckets = math.MaxUint32 / bucketBytes
)

// buckets of a hash map.
func buckets(entries uint32) uint64 {
	if entries <= 1 {
		return 1
	}
	return 1 << bits.Len32(entries-1)
}

func isHash(t ebpf.MapType) bool { return t == ebpf.Hash || t == ebpf.LRUHash }

// upFront is about how many bytes the kernel allocates for a map when it is made.
func upFront(spec *ebpf.MapSpec, entries uint32) uint64 {
	const align = 8
	round := func(n uint32) uint64 { return (uint64(n) + align - 1) / align * align }
	n := uint64(entries)
	switch {
	case spec.Type == ebpf.Array:
		return n * round(spec.ValueSize)
	case isHash(spec.Type) && spec.Flags&unix.BPF_F_NO_PREALLOC == 0:
		return n*(elementBytes+round(spec.KeySize)+round(spec.ValueSize)) + buckets(entries)*bucketBytes
	case isHash(spec.Type):
		return buckets(entries) * bucketBytes
	}
	return 0 // a trie, which takes memory by entry
}

// request is a map that is to be made in place of a smaller one.
type request struct {
	name    string
	spec    *ebpf.MapSpec
	entries uint32
}

func larger(name string, m *ebpf.Map, entries uint32) request {
	return request{name, &ebpf.MapSpec{Type: m.Type(), KeySize: m.KeySize(), ValueSize: m.ValueSize(), Flags: m.Flags()}, entries}
}

// refused says so of a size that the kernel does not make a map of.
func refused(err error) error {
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("%w: the kernel refuses a map of that size: %w", ErrTooLarge, err)
	}
	return err
}

// checkRoom refuses maps that the kernel does not make, and such as would take
// more than half of the available memory at once: the kernel would take it from
// whatever else the node runs.
func checkRoom(requests ...request) error {
	available, err := availableMemory()
	if err != nil {
		return err
	}
	return fits(available, requests...)
}

func fits(available uint64, requests ...request) error {
	var sum uint64
	for i, r := range requests {
		if isHash(r.spec.Type) && buckets(r.entries) > maxBuckets {
			return fmt.Errorf("map %s: %d entries: %w: the kernel refuses a hash map of more than %d", r.name, r.entries, ErrTooLarge, 1<<(bits.Len32(maxBuckets)-1))
		}
		if sum += upFront(r.spec, r.entries); sum > available/2 {
			beside := ""
			if i > 0 {
				beside = " with the other maps that grow"
			}
			return fmt.Errorf("map %s: %d entries: %w: they take %d MiB at once%s, and at most half of the node's %d MiB of available memory may be taken",
				r.name, r.entries, ErrTooLarge, sum>>20, beside, available>>20)
		}
	}
	return nil
}

// availableMemory is what the kernel can give without swapping, in bytes.
func availableMemory() (uint64, error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the node's available memory: %w", err)
	}
	defer file.Close() //nolint:errcheck // read only
	for lines := bufio.NewScanner(file); lines.Scan(); {
		value, ok := strings.CutPrefix(lines.Text(), "MemAvailable:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the node's available memory: %w", err)
		}
		return kib << 10, nil
	}
	return 0, errors.New("read the node's available memory: /proc/meminfo has no MemAvailable")
}
