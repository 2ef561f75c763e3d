// SPDX-License-Identifier: Apache-2.0

package loadgen

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startServer serves on loopback for as long as the test runs.
func startServer(t *testing.T, address string) netip.AddrPort {
	t.Helper()
	s, err := Listen(netip.MustParseAddrPort(address))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Serve(int(r.Fd())) }()
	t.Cleanup(func() {
		w.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		r.Close()
		s.Close()
	})
	return s.Addr()
}

func TestLoads(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		target := startServer(t, address)
		for _, mode := range []Mode{ModeConnect, ModeRequest, ModeStream} {
			t.Run(mode.String()+"/"+address, func(t *testing.T) {
				r, err := Run(Load{Mode: mode, Target: target, Connections: 4, Warmup: 10 * time.Millisecond, Duration: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				if r.Operations < 10 || r.Seconds < 0.1 {
					t.Errorf("too little was done: %+v", r)
				}
				if mode != ModeStream && (r.P50 <= 0 || r.P99 < r.P50 || r.P99 > time.Second) {
					t.Errorf("quantiles make no sense: %+v", r)
				}
			})
		}
	}
}

func TestRefused(t *testing.T) {
	s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	target := s.Addr()
	s.Close()
	for _, mode := range []Mode{ModeConnect, ModeStream} {
		_, err := Run(Load{Mode: mode, Target: target, Connections: 1, Duration: 50 * time.Millisecond})
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s on a closed port: %v; want %v", mode, err, unix.ECONNREFUSED)
		}
	}
}
