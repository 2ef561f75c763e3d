// SPDX-License-Identifier: Apache-2.0

// Package loadgen is the load generator of the benchmark: a server and a
// closed-loop client, each one thread around epoll, with raw system calls and
// no allocation per request, so that what is measured is the path between the
// two and not the tools at its ends.
//
// A request is requestSize bytes whose first byte tells the server what to do:
// answer and close, answer and keep the connection, or swallow what follows.
package loadgen

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// requestSize is the length of a request and of an answer.
const requestSize = 64

// Mode is what a connection is used for; it is also a request's first byte.
type Mode byte

const (
	// ModeConnect opens a connection for each request.
	ModeConnect Mode = 'C'
	// ModeRequest sends requests one after the other on open connections.
	ModeRequest Mode = 'R'
	// ModeStream sends as much as goes through one connection.
	ModeStream Mode = 'S'
)

// ParseMode returns the mode of a name: connect, request or stream.
func ParseMode(name string) (Mode, error) {
	switch name {
	case "connect":
		return ModeConnect, nil
	case "request":
		return ModeRequest, nil
	case "stream":
		return ModeStream, nil
	}
	return 0, fmt.Errorf("mode %q is not one of connect, request, stream", name)
}

// String returns the name of the mode.
func (m Mode) String() string {
	switch m {
	case ModeConnect:
		return "connect"
	case ModeRequest:
		return "request"
	case ModeStream:
		return "stream"
	}
	return fmt.Sprintf("mode %d", byte(m))
}

// priority makes whatever else runs on the machine wait for the two ends.
const priority = -20

// Isolate prepares the process for a loop: the calling goroutine keeps its
// thread, the thread keeps to one core (any if negative) and goes before
// others, and the garbage collector stays off, for there is nothing to
// collect.
func Isolate(cpu int) error {
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, priority); err != nil {
		return fmt.Errorf("raising the priority: %w", err)
	}
	if cpu < 0 {
		return nil
	}
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("binding to core %d: %w", cpu, err)
	}
	return nil
}

// sockaddr converts an address for the raw calls.
func sockaddr(addr netip.AddrPort) (unix.Sockaddr, int) {
	if a := addr.Addr().Unmap(); a.Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: a.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}, unix.AF_INET6
}

// Result is what one run of a client found.
type Result struct {
	// Operations is the number of requests, or of bytes in ModeStream.
	Operations uint64 `json:"operations"`
	// Seconds is the time they took.
	Seconds float64 `json:"seconds"`
	// P50 and P99 are quantiles of the time an operation took; zero in
	// ModeStream.
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
	// CPUSeconds is the time all cores of the machine were busy.
	CPUSeconds float64 `json:"cpuSeconds"`
}

// Rate returns operations per second.
func (r Result) Rate() float64 { return float64(r.Operations) / r.Seconds }
