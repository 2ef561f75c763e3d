// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
)

// BenchmarkSweep prints what an entry costs the sweeper, in time of a core: two
// thirds of the entries are aliases, whose records it looks up.
func BenchmarkSweep(b *testing.B) {
	const flows = 1 << 17
	m := create(b, "established_v4", uint32(sizeof[layout.CtKeyV4]()), uint32(sizeof[layout.CtEntryV4]()), 3*flows, ebpf.Hash)
	var keys []layout.CtKeyV4
	var entries []layout.CtEntryV4
	expires := bpf.CoarseNow() + uint64(time.Hour)
	for i := range flows {
		client := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.0.%d.1", i>>15)), uint16(i&0x7fff)+1)
		main, _, _ := layout.NewCtKey[layout.V4](client, netip.MustParseAddrPort("10.1.0.2:8080"), layout.ProtoTCP)
		keys = append(keys, main)
		entries = append(entries, layout.CtEntryV4{Kind: layout.CtRecord, Nonce: uint32(i), Main: main, Expires: expires})
		for _, other := range []string{"10.9.0.1:80", "10.9.0.2:80"} {
			key, _, _ := layout.NewCtKey[layout.V4](client, netip.MustParseAddrPort(other), layout.ProtoTCP)
			keys = append(keys, key)
			entries = append(entries, layout.CtEntryV4{Kind: layout.CtAliasFrontend, Nonce: uint32(i), Main: main})
		}
	}
	if err := bpf.UpdateBatch(m, keys, entries); err != nil {
		b.Fatal(err)
	}
	table := New(func(family int) Maps {
		if family == 4 {
			return Maps{Established: m}
		}
		return Maps{}
	})
	s := NewSweeper(table, Observer{Begin: func() map[uint32]struct{} { return nil }, End: func(p PassStats) {
		if p.Seen != 3*flows || p.Removed != 0 {
			b.Fatalf("%+v", p)
		}
	}, Failed: func(err error) { b.Error(err) }})
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := cpu()
	for b.Loop() {
		if err := s.Pass(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu()-began)/float64(b.N)/(3*flows), "cpu-ns/entry")
}
