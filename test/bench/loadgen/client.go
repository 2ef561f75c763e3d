// SPDX-License-Identifier: Apache-2.0

package loadgen

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/histogram"
)

// Load says what a client is to do.
type Load struct {
	// Mode is what connections are used for.
	Mode Mode
	// Target is what the client dials.
	Target netip.AddrPort
	// Connections is how many are open at once; each has one request in
	// flight. ModeStream uses one.
	Connections int
	// Warmup is run before anything is counted.
	Warmup time.Duration
	// Duration is how long operations are counted.
	Duration time.Duration
}

// client is one run of a load.
type client struct {
	load     Load
	sockaddr unix.Sockaddr
	family   int
	epoll    int
	// slots by file descriptor: the loop finds a connection without a map.
	slots   []slot
	request [requestSize]byte
	buffer  [4096]byte
	hist    histogram.Histogram
}

// slot is the state of one connection.
type slot struct {
	open     bool
	sent     bool
	received int
	begin    time.Time
}

// errStalled tells that nothing was answered for long.
var errStalled = errors.New("no answer for 3 seconds")

// Run runs the load. Any failing connection fails the run: a rate with errors
// in it would say nothing.
func Run(load Load) (Result, error) {
	c := &client{load: load}
	c.sockaddr, c.family = sockaddr(load.Target)
	for i := range c.request {
		c.request[i] = byte(load.Mode)
	}
	var result Result
	var err error
	if load.Mode == ModeStream {
		result, err = c.stream()
	} else {
		result, err = c.loop()
	}
	if err != nil {
		return Result{}, fmt.Errorf("%s load on %s: %w", load.Mode, load.Target, err)
	}
	return result, nil
}

// loop runs a closed loop over load.Connections connections.
func (c *client) loop() (Result, error) {
	var err error
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return Result{}, fmt.Errorf("making an epoll: %w", err)
	}
	defer unix.Close(c.epoll)
	defer c.closeAll()
	for range c.load.Connections {
		if err := c.connect(); err != nil {
			return Result{}, err
		}
	}
	if err := c.runUntil(time.Now().Add(c.load.Warmup)); err != nil {
		return Result{}, err
	}
	c.hist = histogram.Histogram{}
	busy, err := busySeconds()
	if err != nil {
		return Result{}, err
	}
	begin := time.Now()
	if err := c.runUntil(begin.Add(c.load.Duration)); err != nil {
		return Result{}, err
	}
	seconds := time.Since(begin).Seconds()
	busyAfter, err := busySeconds()
	if err != nil {
		return Result{}, err
	}
	return Result{
		Operations: c.hist.Total(), Seconds: seconds, CPUSeconds: busyAfter - busy,
		P50: c.hist.Quantile(0.50), P99: c.hist.Quantile(0.99),
	}, nil
}

func (c *client) runUntil(end time.Time) error {
	var events [maxEvents]unix.EpollEvent
	stalled := 0
	for time.Now().Before(end) {
		n, err := epollWait(c.epoll, events[:], 100)
		if err != nil {
			return fmt.Errorf("waiting for answers: %w", err)
		}
		if n == 0 {
			if stalled++; stalled == 30 {
				return errStalled
			}
			continue
		}
		stalled = 0
		for i := range n {
			if err := c.advance(int(events[i].Fd), events[i].Events); err != nil {
				return err
			}
		}
	}
	return nil
}

// connect opens one connection and leaves the rest to advance.
func (c *client) connect() error {
	begin := time.Now()
	fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	for len(c.slots) <= fd {
		c.slots = append(c.slots, slot{})
	}
	c.slots[fd] = slot{open: true, begin: begin}
	if err := unix.Connect(fd, c.sockaddr); err != nil && err != unix.EINPROGRESS {
		return fmt.Errorf("connecting: %w", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(c.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("watching a connection: %w", err)
	}
	return nil
}

// advance takes a connection as far as it goes without waiting.
func (c *client) advance(fd int, events uint32) error {
	s := &c.slots[fd]
	if !s.sent {
		if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			return fmt.Errorf("connecting: %w", socketError(fd))
		}
		if events&unix.EPOLLOUT == 0 {
			return nil
		}
		if err := c.send(fd, s); err != nil {
			return err
		}
	}
	for {
		n, errno := rawRead(fd, c.buffer[:])
		switch {
		case errno == unix.EAGAIN:
			return nil
		case errno != 0:
			return fmt.Errorf("reading an answer: %w", errno)
		case n == 0 && (c.load.Mode != ModeConnect || s.received < requestSize):
			return errors.New("the server closed the connection early")
		case n == 0:
			closeFD(fd)
			s.open = false
			c.hist.Record(time.Since(s.begin))
			return c.connect()
		}
		s.received += n
		if c.load.Mode == ModeRequest && s.received >= requestSize {
			now := time.Now()
			c.hist.Record(now.Sub(s.begin))
			s.begin = now
			return c.send(fd, s)
		}
		if n < len(c.buffer) && events&unix.EPOLLRDHUP == 0 {
			return nil // drained: an edge tells of more
		}
	}
}

func (c *client) send(fd int, s *slot) error {
	s.sent, s.received = true, 0
	if n, errno := rawWrite(fd, c.request[:]); errno != 0 || n != requestSize {
		return fmt.Errorf("sending a request: %d bytes, %w", n, errno)
	}
	return nil
}

func (c *client) closeAll() {
	for fd := range c.slots {
		if c.slots[fd].open {
			closeFD(fd)
		}
	}
}

// stream sends through one connection as fast as it goes.
func (c *client) stream() (Result, error) {
	fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Result{}, fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	patience := unix.Timeval{Sec: 3}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err != nil {
		return Result{}, fmt.Errorf("limiting the time to send: %w", err)
	}
	// A send timeout limits connect too, and then a signal ends it early.
	err = unix.Connect(fd, c.sockaddr)
	for err == unix.EINTR {
		err = unix.Connect(fd, c.sockaddr)
	}
	if err != nil && err != unix.EISCONN {
		return Result{}, fmt.Errorf("connecting: %w", err)
	}
	chunk := make([]byte, 128<<10)
	for i := range chunk {
		chunk[i] = byte(ModeStream)
	}
	if _, err := streamUntil(fd, chunk, time.Now().Add(c.load.Warmup)); err != nil {
		return Result{}, err
	}
	busy, err := busySeconds()
	if err != nil {
		return Result{}, err
	}
	begin := time.Now()
	sent, err := streamUntil(fd, chunk, begin.Add(c.load.Duration))
	if err != nil {
		return Result{}, err
	}
	seconds := time.Since(begin).Seconds()
	busyAfter, err := busySeconds()
	if err != nil {
		return Result{}, err
	}
	return Result{Operations: sent, Seconds: seconds, CPUSeconds: busyAfter - busy}, nil
}

func streamUntil(fd int, chunk []byte, end time.Time) (uint64, error) {
	var sent uint64
	for time.Now().Before(end) {
		n, err := unix.Write(fd, chunk)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("sending: %w", err)
		}
		sent += uint64(n)
	}
	return sent, nil
}

func socketError(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if errno == 0 {
		return errors.New("the connection ended")
	}
	return unix.Errno(errno)
}
