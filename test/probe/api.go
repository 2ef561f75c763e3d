// SPDX-License-Identifier: Apache-2.0

// Package probe makes traffic and tells what became of it. A prober is a
// process inside a namespace and cgroup of a testbed cluster: it serves echo
// servers and dials others, as it is told over a unix socket, and reports
// every address that the sockets on both ends saw.
package probe

import (
	"net/netip"
	"time"
)

// Network names.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Failure says how a call failed.
type Failure string

// The failures that tests tell apart.
const (
	// None: it did not fail.
	None Failure = ""
	// Refused: connection refused (RST, or ICMP port unreachable).
	Refused Failure = "refused"
	// Timeout: nothing came back in time.
	Timeout Failure = "timeout"
	// Reset: the connection was broken by the other end.
	Reset Failure = "reset"
	// Unreachable: no route, or an ICMP unreachable that is not a refusal.
	Unreachable Failure = "unreachable"
	// TooBig: an ICMP error said that an earlier datagram was wider than the
	// path.
	TooBig Failure = "too big"
	// WrongBackend: somebody answered who was not a backend of the service.
	WrongBackend Failure = "wrong backend"
	// LostSYN: the connection came about, but not at the first attempt.
	LostSYN Failure = "lost SYN"
	// Other: see Detail.
	Other Failure = "other"
)

// DefaultTimeout is how long a call waits for an answer if the request does
// not say.
const DefaultTimeout = 3 * time.Second

// Dial describes a client socket.
type Dial struct {
	// Network is TCP or UDP.
	Network string
	// Target is what to connect to. Not valid: an unconnected UDP socket,
	// each exchange names its target.
	Target netip.AddrPort
	// Mapped reaches an IPv4 target by an IPv6 socket (v4-mapped address).
	// Unconnected sockets: makes the socket an IPv6 one that can do both.
	Mapped bool
	// IPv6 makes an unconnected socket an IPv6 one.
	IPv6 bool
	// Bind is the local address and port; the zero value lets the kernel
	// choose. An address of zeroes, of any family, chooses the port alone.
	Bind netip.AddrPort
	// Abort makes closing break a TCP connection (RST), so that its port is
	// free for another at once.
	Abort bool
	// Timeout of connecting and of each exchange; DefaultTimeout if zero.
	Timeout time.Duration
}

// Opened is the result of opening a client socket.
type Opened struct {
	Outcome
	// Session names the socket in later calls.
	Session int
	// Local and Peer are what getsockname and getpeername return.
	Local, Peer netip.AddrPort
}

// Exchange asks for one request and its answer on an open socket.
type Exchange struct {
	Session int
	// Target of an unconnected UDP socket's request.
	Target netip.AddrPort
	// Size and ReplySize are bytes of payload there and back, checked by
	// checksums; small ones if zero.
	Size, ReplySize int
}

// Outcome is what became of a call.
type Outcome struct {
	Failure Failure `json:",omitempty"`
	// Detail of the failure, for people.
	Detail string `json:",omitempty"`
	// Took is how long it took.
	Took time.Duration
}

// Answer is the result of an exchange.
type Answer struct {
	Outcome
	// Server is the name of the prober that answered.
	Server string
	// Client is the client's address as the server saw it, Address the
	// server's own address of the connection.
	Client, Address netip.AddrPort
	// From is where the answer came from as the client saw it: the result
	// of recvfrom (UDP) or getpeername (TCP).
	From netip.AddrPort
	// Local is the client's own address.
	Local netip.AddrPort
}

// Listen asks for an echo server.
type Listen struct {
	// Network is TCP or UDP.
	Network string
	// Address to listen on.
	Address netip.AddrPort
}

// echo is what an echo server answers, as JSON: the body of an HTTP response
// (TCP), or the beginning of a datagram that blanks fill up (UDP).
type echo struct {
	Server  string         `json:"server"`
	Client  netip.AddrPort `json:"client"`
	Address netip.AddrPort `json:"address"`
	// ID of the request, which counts those of one socket.
	ID uint64 `json:"id,omitempty"`
	// Bytes and Sum tell what payload the server received.
	Bytes int64  `json:"bytes,omitempty"`
	Sum   string `json:"sum,omitempty"`
}

// datagram is the beginning of a UDP request; blanks fill it up.
type datagram struct {
	ID    uint64 `json:"id"`
	Reply int    `json:"reply"`
}
