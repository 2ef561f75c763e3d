// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLoad runs a load of every kind, and takes the server away in the end:
// what comes then is counted as failed.
func TestLoad(t *testing.T) {
	client := startProber(t)
	var load Load
	load.Backends = map[string][]netip.AddrPort{}
	var servers []Listen
	for _, network := range []string{TCP, UDP} {
		for _, loopback := range loopbacks {
			address, err := client.Listen(network, loopback)
			if err != nil {
				t.Fatal(err)
			}
			servers = append(servers, Listen{network, address})
			load.Backends["right"] = append(load.Backends["right"], address)
			stream := Stream{Name: "open " + address.String(), Service: "right", Dial: Dial{Network: network, Target: address, Timeout: time.Second}, Sockets: 2, Interval: 2 * time.Millisecond}
			fresh := stream
			fresh.Name, fresh.Fresh = "fresh "+address.String(), true
			wrong := stream
			wrong.Name, wrong.Service = "wrong "+address.String(), "another"
			load.Streams = append(load.Streams, stream, fresh, wrong)
			if network == UDP {
				free := stream
				free.Name, free.To = "unconnected "+address.String(), address
				free.Dial.Target, free.Dial.IPv6 = netip.AddrPort{}, address.Addr().Is6()
				load.Streams = append(load.Streams, free)
			}
		}
	}
	if err := client.StartLoad(load); err != nil {
		t.Fatal(err)
	}
	if err := client.StartLoad(load); err == nil {
		t.Error("a second load: no error")
	}
	await := func(what string, met func(StreamReport, Stream) bool) {
		t.Helper()
		sums := make([]StreamReport, len(load.Streams))
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			report, err := client.ReportLoad()
			if err != nil {
				t.Fatal(err)
			}
			all := true
			for i, part := range report.Streams {
				sums[i].Requests += part.Requests
				sums[i].Failed += part.Failed
				sums[i].Failures = append(sums[i].Failures, part.Failures...)
				all = all && met(sums[i], load.Streams[i])
			}
			if all {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, sums)
			}
		}
	}
	await("with servers", func(r StreamReport, s Stream) bool {
		if s.Service == "another" {
			return r.Failed > 5 && r.Failed == r.Requests && r.Failures[0].Failure == WrongBackend
		}
		if r.Failed > 0 {
			t.Fatalf("%s: %+v", s.Name, r.Failures)
		}
		return r.Requests > 50
	})
	for _, server := range servers {
		if err := client.Unlisten(server.Network, server.Address); err != nil {
			t.Error(err)
		}
	}
	await("without servers", func(r StreamReport, s Stream) bool { return r.Failed > 5 })
	if _, err := client.StopLoad(); err != nil {
		t.Error(err)
	}
	if _, err := client.StopLoad(); err == nil {
		t.Error("stop without a load: no error")
	}
}

// TestBackendTimes proves when an answer is right.
func TestBackendTimes(t *testing.T) {
	backend := netip.MustParseAddrPort("192.0.2.1:80")
	times := newBackendTimes(Load{})
	change := func(state BackendState) time.Time {
		t.Helper()
		if err := times.change(BackendChange{"s", backend, state}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		return time.Now()
	}
	begin := time.Now()
	if times.valid("s", backend, begin) {
		t.Error("valid before it serves")
	}
	serving := change(Serving)
	if !times.valid("s", backend, begin) || times.valid("other", backend, begin) || times.leaving("s", begin, time.Now()) {
		t.Error("a request that was under way when a backend came")
	}
	leaving := change(Leaving)
	if !times.valid("s", backend, leaving) || !times.leaving("s", serving, time.Now()) {
		t.Error("not valid while it leaves")
	}
	gone := change(Gone)
	if !times.valid("s", backend, leaving) || times.valid("s", backend, gone) ||
		!times.leaving("s", leaving, time.Now()) || times.leaving("s", begin, serving) || times.leaving("s", gone, time.Now()) {
		t.Error("valid when it is gone")
	}
	if err := times.change(BackendChange{"s", backend, Leaving}); err == nil {
		t.Error("left twice")
	}
	change(Serving)
	if !times.valid("s", backend, gone) || times.leaving("s", gone, time.Now()) {
		t.Error("not valid when it is back")
	}
}

// TestLostSYN connects to a server that takes no connection at first: the load
// sees that it took two attempts.
func TestLostSYN(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	// A queue of one, which the first connection fills.
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	target := getsockname(fd)
	first, err := net.Dial("tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	client := startProber(t)
	err = client.StartLoad(Load{Streams: []Stream{{
		Name: "lost", Dial: Dial{Network: TCP, Target: target, Timeout: 10 * time.Second}, Fresh: true, Sockets: 1, Interval: 10 * time.Millisecond,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	// The second one waits with its SYN unanswered until there is room.
	for deadline := time.Now().Add(20 * time.Second); !hasSYNSent(t, target); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no connection waits")
		}
	}
	accepted, _, err := unix.Accept(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(accepted)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		report, err := client.ReportLoad()
		if err != nil {
			t.Fatal(err)
		}
		if stream := report.Streams[0]; stream.Requests > 0 {
			if stream.Failed == 0 || stream.Failures[0].Failure != LostSYN || stream.Connect < 900*time.Millisecond {
				t.Errorf("got %+v, want a lost SYN", stream)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the second connection did not come about")
		}
	}
}

// hasSYNSent tells whether a socket of this namespace waits for the answer to
// its SYN to the target.
func hasSYNSent(t *testing.T, target netip.AddrPort) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		const synSent = "02"
		if fields := strings.Fields(line); len(fields) > 3 && fields[3] == synSent && parseKernelAddress(fields[2]) == target.String() {
			return true
		}
	}
	return false
}
