// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/histogram"
)

// runningLoad is a load that is being sent.
type runningLoad struct {
	times   *backendTimes
	streams []*runningStream
	stop    chan struct{}
	group   sync.WaitGroup
}

// runningStream is one of its streams.
type runningStream struct {
	Stream
	times *backendTimes

	mu     sync.Mutex
	report StreamReport
}

func startLoad(load Load) (*runningLoad, error) {
	l := &runningLoad{times: newBackendTimes(load), stop: make(chan struct{})}
	for _, stream := range load.Streams {
		if stream.Interval <= 0 || stream.Sockets <= 0 {
			return nil, fmt.Errorf("stream %s: sockets and interval must be positive", stream.Name)
		}
		if stream.Dial.Timeout == 0 {
			stream.Dial.Timeout = DefaultTimeout
		}
		l.streams = append(l.streams, &runningStream{Stream: stream, times: l.times})
	}
	for _, stream := range l.streams {
		stream.take()
		for n := range stream.Sockets {
			l.group.Go(func() { stream.run(uint64(n+1), l.stop) })
		}
	}
	return l, nil
}

func (l *runningLoad) take() Report {
	var report Report
	for _, stream := range l.streams {
		report.Streams = append(report.Streams, stream.take())
	}
	return report
}

// take returns the stream's report and begins a new one.
func (s *runningStream) take() StreamReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	report := s.report
	s.report = StreamReport{Name: s.Name, Latency: &histogram.Histogram{}}
	return report
}

// run makes the requests of one of the stream's sockets.
func (s *runningStream) run(number uint64, stop <-chan struct{}) {
	// The sockets take turns.
	phase := time.NewTimer(s.Interval * time.Duration(number) / time.Duration(s.Sockets))
	defer phase.Stop()
	select {
	case <-phase.C:
	case <-stop:
		return
	}
	socket := &loadSocket{stream: s, number: number}
	defer socket.close()
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	for {
		socket.request()
		select {
		case <-tick.C:
		case <-stop:
			return
		}
	}
}

// loadSocket is the place of a socket in a stream.
type loadSocket struct {
	stream  *runningStream
	number  uint64
	id      uint64
	session *session
	opened  time.Time
}

// underWay is more than a UDP request and its answer are under way, however
// busy the machine.
const underWay = 300 * time.Millisecond

// request makes one request and counts it.
func (s *loadSocket) request() {
	s.id++
	began := time.Now()
	if s.session == nil && !s.open(began) {
		return
	}
	since := began
	if s.stream.Stays || s.stream.Dial.Network == TCP {
		since = s.opened
	}
	answer := s.exchange(since)
	if answer.Failure != None && s.stream.Dial.Network == UDP && s.stream.times.leaving(s.stream.Service, began, began.Add(underWay)) {
		s.stream.count(func(r *StreamReport) { r.Repeated++ })
		began = time.Now()
		answer = s.exchange(since)
	}
	if answer.Failure != None {
		answer.Detail += "; connected to " + kernelPeer(s.session.fd, s.stream.Dial.Network)
		s.fail(began, answer)
		s.close()
		return
	}
	if s.stream.Fresh {
		s.close()
	}
	took := time.Since(began)
	s.stream.count(func(r *StreamReport) {
		r.Requests++
		r.Latency.Record(took)
	})
}

// exchange sends the request once. The answer must be by a backend of the time
// since then.
func (s *loadSocket) exchange(since time.Time) Answer {
	answer := s.session.exchange(Exchange{Target: s.stream.To})
	if answer.Failure == None {
		s.check(&answer, since)
	}
	return answer
}

// check finds fault with who answered.
func (s *loadSocket) check(answer *Answer, since time.Time) {
	dialled := s.stream.Dial.Target
	if !dialled.IsValid() {
		dialled = s.stream.To
	}
	switch {
	case unmap(answer.From) != dialled:
		answer.Failure = WrongBackend
		answer.Detail = fmt.Sprintf("the answer comes from %s, dialled was %s", answer.From, dialled)
	case !s.stream.times.valid(s.stream.Service, answer.Address, since):
		answer.Failure = WrongBackend
		answer.Detail = fmt.Sprintf("%s was no backend of %s since %s", answer.Address, s.stream.Service, since.Format(timeFormat))
	}
}

const timeFormat = "15:04:05.000000"

// open opens a socket, and counts the request as failed if it cannot.
func (s *loadSocket) open(began time.Time) bool {
	session, opened := openSession(s.stream.Dial)
	s.stream.count(func(r *StreamReport) { r.Connect = max(r.Connect, opened.Took) })
	if opened.Failure != None {
		s.fail(began, Answer{Outcome: opened.Outcome, Local: opened.Local})
		return false
	}
	s.session, s.opened = session, began
	if again := session.retransmitted(); again > 0 {
		s.fail(began, Answer{Local: opened.Local, Outcome: Outcome{Failure: LostSYN,
			Detail: fmt.Sprintf("connected after %v and %d retransmissions", opened.Took, again)}})
		s.close()
		return false
	}
	return true
}

func (s *loadSocket) close() {
	if s.session == nil {
		return
	}
	again := s.session.retransmitted()
	s.stream.count(func(r *StreamReport) { r.Retransmitted += again })
	// A reset that came after the answer shows here, and is nobody's loss.
	_ = s.session.close()
	s.session = nil
}

func (s *loadSocket) fail(began time.Time, answer Answer) {
	var backend netip.AddrPort
	if answer.Failure == WrongBackend {
		backend = answer.Address
	}
	s.stream.count(func(r *StreamReport) {
		r.Requests++
		r.Failed++
		if len(r.Failures) < maxFailures {
			r.Failures = append(r.Failures, FailedRequest{
				Began: began, Ended: time.Now(), Socket: s.number, ID: s.id,
				Failure: answer.Failure, Detail: answer.Detail, Local: answer.Local, Backend: backend,
			})
		}
	})
}

func (s *runningStream) count(change func(*StreamReport)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.report)
}

// retransmitted is how many segments TCP has sent more than once.
func (s *session) retransmitted() uint64 {
	if s.dial.Network != TCP {
		return 0
	}
	info, err := unix.GetsockoptTCPInfo(s.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return uint64(info.Total_retrans)
}

// The calls.

var errNoLoad = errors.New("no load is running")

func (p *Prober) loadStart(load Load) (struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.load != nil {
		return struct{}{}, errors.New("a load is running already")
	}
	var err error
	p.load, err = startLoad(load)
	return struct{}{}, err
}

func (p *Prober) loadBackend(change BackendChange) (struct{}, error) {
	load, err := p.running()
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, load.times.change(change)
}

func (p *Prober) loadReport(struct{}) (Report, error) {
	load, err := p.running()
	if err != nil {
		return Report{}, err
	}
	return load.take(), nil
}

func (p *Prober) loadStop(struct{}) (Report, error) {
	load, err := p.running()
	if err != nil {
		return Report{}, err
	}
	close(load.stop)
	load.group.Wait()
	p.mu.Lock()
	p.load = nil
	p.mu.Unlock()
	return load.take(), nil
}

func (p *Prober) running() (*runningLoad, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.load == nil {
		return nil, errNoLoad
	}
	return p.load, nil
}
