// SPDX-License-Identifier: Apache-2.0

package loadgen

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxEvents is how many events one epoll_wait returns.
const maxEvents = 256

// Server answers requests. It is one thread.
type Server struct {
	listener, epoll int
	addr            netip.AddrPort
	buffer          []byte
}

// Listen opens a server at the address.
func Listen(addr netip.AddrPort) (*Server, error) {
	sa, family := sockaddr(addr)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	s := &Server{listener: fd, epoll: -1, buffer: make([]byte, 256<<10)}
	if err := s.setup(sa); err != nil {
		s.Close()
		return nil, fmt.Errorf("listening at %s: %w", addr, err)
	}
	return s, nil
}

func (s *Server) setup(sa unix.Sockaddr) error {
	if err := unix.SetsockoptInt(s.listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(s.listener, sa); err != nil {
		return err
	}
	if err := unix.Listen(s.listener, 1024); err != nil {
		return err
	}
	bound, err := unix.Getsockname(s.listener)
	if err != nil {
		return err
	}
	switch b := bound.(type) {
	case *unix.SockaddrInet4:
		s.addr = netip.AddrPortFrom(netip.AddrFrom4(b.Addr), uint16(b.Port))
	case *unix.SockaddrInet6:
		s.addr = netip.AddrPortFrom(netip.AddrFrom16(b.Addr), uint16(b.Port))
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	return s.watch(s.listener)
}

// Addr returns the address the server listens at.
func (s *Server) Addr() netip.AddrPort { return s.addr }

// Close closes the server's own descriptors. Serve must not be running.
func (s *Server) Close() {
	unix.Close(s.listener)
	if s.epoll >= 0 {
		unix.Close(s.epoll)
	}
}

func (s *Server) watch(fd int) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	return unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &event)
}

// Serve answers until a call fails that cannot fail, or until stop becomes
// readable.
func (s *Server) Serve(stop int) error {
	if err := s.watch(stop); err != nil {
		return fmt.Errorf("watching for the end: %w", err)
	}
	var events [maxEvents]unix.EpollEvent
	for {
		n, err := epollWait(s.epoll, events[:], -1)
		if err != nil {
			return fmt.Errorf("waiting for requests: %w", err)
		}
		for i := range n {
			switch fd := int(events[i].Fd); fd {
			case stop:
				return nil
			case s.listener:
				if err := s.accept(); err != nil {
					return err
				}
			default:
				s.serve(fd)
			}
		}
	}
}

func (s *Server) accept() error {
	for {
		fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(s.listener), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		switch errno {
		case 0:
			if err := s.watch(int(fd)); err != nil {
				return fmt.Errorf("watching a connection: %w", err)
			}
		case unix.EAGAIN:
			return nil
		case unix.ECONNABORTED, unix.EINTR:
		default:
			return fmt.Errorf("accepting: %w", errno)
		}
	}
}

// serve handles one readable connection.
func (s *Server) serve(fd int) {
	n, errno := rawRead(fd, s.buffer)
	if errno == unix.EAGAIN {
		return
	}
	if errno != 0 || n == 0 {
		closeFD(fd)
		return
	}
	switch Mode(s.buffer[0]) {
	case ModeConnect:
		rawWrite(fd, s.buffer[:requestSize])
		closeFD(fd)
	case ModeRequest:
		// Several requests are never in flight on one connection, and 64
		// bytes are never split.
		if _, errno := rawWrite(fd, s.buffer[:requestSize]); errno != 0 {
			closeFD(fd)
		}
	}
}

// epollWait lets the runtime know that it waits, unlike the calls below, which
// never do: a blocked raw call would hold up the garbage collector.
func epollWait(epoll int, events []unix.EpollEvent, milliseconds int) (int, error) {
	for {
		n, err := unix.EpollWait(epoll, events, milliseconds)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

func rawWrite(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func closeFD(fd int) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
