// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets are made by system calls: package net hides v4-mapped addresses
// and what getpeername returns.

func sockaddr(address netip.AddrPort, ipv6 bool) unix.Sockaddr {
	if ipv6 {
		return &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
}

// fromSockaddr keeps v4-mapped addresses as they are.
func fromSockaddr(address unix.Sockaddr) netip.AddrPort {
	switch address := address.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(address.Addr), uint16(address.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(address.Addr), uint16(address.Port))
	}
	return netip.AddrPort{}
}

// openSocket makes and, if there is a target, connects a blocking socket.
func openSocket(dial Dial) (int, error) {
	ipv6 := dial.Mapped || dial.IPv6 || dial.Target.Addr().Is6()
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if ipv6 {
		domain = unix.AF_INET6
	}
	if dial.Network == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := prepareSocket(fd, dial, ipv6); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func prepareSocket(fd int, dial Dial, ipv6 bool) error {
	timeout := unix.NsecToTimeval(int64(dial.Timeout))
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &timeout); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
	}
	if ipv6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("allow v4-mapped addresses: %w", err)
		}
	}
	if dial.Abort {
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	if dial.Network == UDP {
		// Large answers come as a whole or not at all.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20); err != nil {
			return fmt.Errorf("set receive buffer: %w", err)
		}
	}
	if bind := dial.Bind; bind.IsValid() {
		if bind.Addr() == netip.IPv4Unspecified() && ipv6 {
			bind = netip.AddrPortFrom(netip.IPv6Unspecified(), bind.Port())
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("set SO_REUSEADDR: %w", err)
		}
		if err := unix.Bind(fd, sockaddr(bind, ipv6)); err != nil {
			return fmt.Errorf("bind: %w", err)
		}
	}
	if dial.Target.IsValid() {
		for {
			err := unix.Connect(fd, sockaddr(dial.Target, ipv6))
			if err == unix.EINTR {
				continue
			}
			if err != nil && err != unix.EISCONN {
				return fmt.Errorf("connect: %w", err)
			}
			return nil
		}
	}
	return nil
}

// outcome says what an error means.
func outcome(err error, began time.Time) Outcome {
	result := Outcome{Took: time.Since(began)}
	if err == nil {
		return result
	}
	result.Detail = err.Error()
	var netErr net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		result.Failure = Refused
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINPROGRESS), errors.Is(err, unix.ETIMEDOUT),
		errors.Is(err, unix.EALREADY), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		result.Failure = Timeout
	case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		result.Failure = Reset
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		result.Failure = Unreachable
	case errors.Is(err, unix.EMSGSIZE):
		result.Failure = TooBig
	default:
		result.Failure = Other
	}
	return result
}

// recvfrom receives one datagram.
func recvfrom(fd int, buffer []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := unix.Recvfrom(fd, buffer, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, netip.AddrPort{}, fmt.Errorf("receive: %w", err)
		}
		return n, fromSockaddr(from), nil
	}
}

func getsockname(fd int) netip.AddrPort {
	address, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(address)
}

func getpeername(fd int) netip.AddrPort {
	address, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return fromSockaddr(address)
}
