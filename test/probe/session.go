// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// session is an open client socket.
type session struct {
	mu   sync.Mutex
	dial Dial
	fd   int
	next uint64

	// TCP only: the same socket for package net.
	conn   net.Conn
	reader *bufio.Reader
}

func openSession(dial Dial) (*session, Opened) {
	if dial.Timeout == 0 {
		dial.Timeout = DefaultTimeout
	}
	began := time.Now()
	fd, err := openSocket(dial)
	opened := Opened{Outcome: outcome(err, began)}
	if err != nil {
		return nil, opened
	}
	opened.Local, opened.Peer = getsockname(fd), getpeername(fd)
	s := &session{dial: dial, fd: fd}
	if dial.Network == TCP {
		// FileConn duplicates the descriptor; both are the same socket.
		file := os.NewFile(uintptr(fd), "session")
		s.conn, err = net.FileConn(file)
		if err == nil {
			s.fd, err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		}
		file.Close()
		if err != nil {
			opened.Outcome = outcome(err, began)
			return nil, opened
		}
		s.reader = bufio.NewReaderSize(s.conn, 64<<10)
	}
	return s, opened
}

func (s *session) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	return errors.Join(err, unix.Close(s.fd))
}

// exchange sends one request and waits for its answer.
func (s *session) exchange(request Exchange) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := time.Now()
	var answer Answer
	var err error
	if s.dial.Network == UDP {
		answer, err = s.exchangeUDP(request)
	} else {
		answer, err = s.exchangeTCP(request)
	}
	answer.Outcome = outcome(err, began)
	answer.Local = getsockname(s.fd)
	return answer
}

func (s *session) exchangeUDP(request Exchange) (Answer, error) {
	s.next++
	message, err := fill(datagram{ID: s.next, Reply: request.ReplySize}, request.Size)
	if err != nil {
		return Answer{}, err
	}
	if request.Target.IsValid() {
		ipv6 := s.dial.Mapped || s.dial.IPv6
		err = unix.Sendto(s.fd, message, 0, sockaddr(request.Target, ipv6))
	} else {
		_, err = unix.Write(s.fd, message)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("send: %w", err)
	}
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := recvfrom(s.fd, buffer)
		if err != nil {
			return Answer{}, err
		}
		var reply echo
		if err := json.NewDecoder(bytes.NewReader(buffer[:n])).Decode(&reply); err != nil {
			return Answer{}, fmt.Errorf("answer is garbled: %w", err)
		}
		if reply.ID != s.next {
			continue // Answer to an earlier request that was given up.
		}
		if reply.Bytes != int64(len(message)) || reply.Sum != sum(message) {
			return Answer{}, fmt.Errorf("server received %d bytes with another checksum instead of %d", reply.Bytes, len(message))
		}
		if n < request.ReplySize || len(bytes.TrimRight(buffer[:n], " ")) > 1024 {
			return Answer{}, fmt.Errorf("answer of %d bytes is not the %d that were asked for", n, request.ReplySize)
		}
		return Answer{Server: reply.Server, Client: reply.Client, Address: reply.Address, From: from}, nil
	}
}

func (s *session) exchangeTCP(request Exchange) (Answer, error) {
	var body io.Reader
	method, hash := http.MethodGet, sha256.New()
	if request.Size > 0 {
		method = http.MethodPost
		body = io.TeeReader(payload(int64(request.Size)), hash)
	}
	s.next++
	var reply echo
	err := s.roundTrip(method, fmt.Sprintf("/?id=%d", s.next), body, int64(request.Size), func(content io.Reader) error {
		return json.NewDecoder(content).Decode(&reply)
	})
	if err != nil {
		return Answer{}, err
	}
	if reply.ID != s.next {
		return Answer{}, fmt.Errorf("the answer is to request %d, not %d", reply.ID, s.next)
	}
	if reply.Bytes != int64(request.Size) || request.Size > 0 && reply.Sum != hex.EncodeToString(hash.Sum(nil)) {
		return Answer{}, fmt.Errorf("server received %d bytes with another checksum instead of %d", reply.Bytes, request.Size)
	}
	if request.ReplySize > 0 {
		got, want := sha256.New(), sha256.New()
		err := s.roundTrip(http.MethodGet, fmt.Sprintf("/bytes?n=%d", request.ReplySize), nil, 0, func(content io.Reader) error {
			_, err := io.Copy(got, content)
			return err
		})
		if err != nil {
			return Answer{}, err
		}
		if _, err := io.Copy(want, payload(int64(request.ReplySize))); err != nil {
			return Answer{}, err
		}
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			return Answer{}, errors.New("received bytes have another checksum")
		}
	}
	return Answer{Server: reply.Server, Client: reply.Client, Address: reply.Address, From: getpeername(s.fd)}, nil
}

// roundTrip is one HTTP request on the session's connection. The timeout is
// for a pause, not for the whole.
func (s *session) roundTrip(method, path string, body io.Reader, size int64, use func(io.Reader) error) error {
	request, err := http.NewRequest(method, "http://probe"+path, body)
	if err != nil {
		return err
	}
	request.ContentLength = size
	conn := &pausing{Conn: s.conn, timeout: s.dial.Timeout}
	if err := request.Write(conn); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(s.dial.Timeout)); err != nil {
		return err
	}
	response, err := http.ReadResponse(s.reader, request)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("closed by the other end: %w", unix.ECONNRESET)
		}
		return fmt.Errorf("receive: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("server answers %s", response.Status)
	}
	if err := use(&extending{Reader: response.Body, conn: s.conn, timeout: s.dial.Timeout}); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	// The rest, so that the next response begins where it should.
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

// pausing gives each write a deadline of its own.
type pausing struct {
	net.Conn
	timeout time.Duration
}

func (p *pausing) Write(data []byte) (int, error) {
	if err := p.SetWriteDeadline(time.Now().Add(p.timeout)); err != nil {
		return 0, err
	}
	return p.Conn.Write(data)
}

// extending moves the read deadline on before each read.
type extending struct {
	io.Reader
	conn    net.Conn
	timeout time.Duration
}

func (e *extending) Read(data []byte) (int, error) {
	if err := e.conn.SetReadDeadline(time.Now().Add(e.timeout)); err != nil {
		return 0, err
	}
	return e.Reader.Read(data)
}

// once opens a session, makes one exchange and closes it.
func once(dial Dial, request Exchange) Answer {
	began := time.Now()
	s, opened := openSession(dial)
	if opened.Failure != None {
		return Answer{Outcome: opened.Outcome, Local: opened.Local}
	}
	answer := s.exchange(request)
	answer.Took = time.Since(began)
	if err := s.close(); err != nil && answer.Failure == None {
		answer.Outcome = outcome(fmt.Errorf("close: %w", err), began)
	}
	return answer
}
