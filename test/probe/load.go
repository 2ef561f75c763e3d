// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/netip"
	"time"

	"github.com/millrace-project/millrace/test/histogram"
)

// Stream is a steady flow of requests of one kind. Each is sent at its time
// whether or not other sockets are still waiting for theirs, carries an id that
// the answer must bear, and must be answered by a backend that the service had
// at some moment of the request.
//
// A request has failed if it was not answered rightly within the dial's
// timeout. TCP repeats what the network loses, which is seen by the time it
// takes and, of the first packet of a connection, counted as LostSYN. A UDP
// request is sent once. Only if its backend was taken from the service
// meanwhile it is sent once more, to another: the answer that was on its way
// is lost by the rules of Services, or reaches the client from an address that
// it did not dial.
type Stream struct {
	// Name of the stream, in reports.
	Name string
	// Service whose backends may answer.
	Service string
	// Dial describes the sockets. Without a target they are unconnected, and
	// requests go to To.
	Dial Dial
	To   netip.AddrPort
	// Stays is set if sockets go on with the backend that they have when the
	// service does not have it any more, as TCP connections do.
	Stays bool
	// Fresh opens a socket for each request; otherwise each socket is open
	// for as long as the load runs.
	Fresh bool
	// Sockets that make requests, each by itself.
	Sockets int
	// Interval between two requests of one socket.
	Interval time.Duration
}

// Load is what a prober is to send until it is told to stop.
type Load struct {
	Streams []Stream
	// Backends by service when the load begins.
	Backends map[string][]netip.AddrPort
}

// BackendState says whether a backend may answer for a service.
type BackendState string

// The states of backends, in their order.
const (
	// Serving: it may answer from now on.
	Serving BackendState = "serving"
	// Leaving: its removal has begun; it may still answer.
	Leaving BackendState = "leaving"
	// Gone: no node knows it any more. What begins from now on must not be
	// answered by it; what stays with its backend begins when its socket is
	// opened.
	Gone BackendState = "gone"
)

// BackendChange is a change of a service's backends under load.
type BackendChange struct {
	Service string
	Backend netip.AddrPort
	State   BackendState
}

// Report is what became of a load's requests since the last report.
type Report struct {
	Streams []StreamReport
}

// StreamReport is the part of a report about one stream.
type StreamReport struct {
	Name string
	// Requests that ended, the failed ones included.
	Requests uint64
	// Failed is how many failed; Failures describes the first of them.
	Failed   uint64
	Failures []FailedRequest `json:",omitempty"`
	// Repeated is how many UDP requests were sent once more because their
	// backend went.
	Repeated uint64
	// Retransmitted is how many segments TCP sent once more, of connections
	// that were closed.
	Retransmitted uint64
	// Connect is the longest time that opening a socket took.
	Connect time.Duration
	// Latency of the requests that succeeded; for fresh sockets with opening.
	Latency *histogram.Histogram
}

// FailedRequest describes a failure.
type FailedRequest struct {
	// Began and Ended bound the request.
	Began, Ended time.Time
	// Socket counts the stream's sockets from 1, ID the requests of one.
	Socket, ID uint64
	Failure    Failure
	Detail     string
	// Local is the client's address, Backend who answered.
	Local, Backend netip.AddrPort
}

// maxFailures is how many failures of a stream a report describes.
const maxFailures = 50

// StartLoad begins to send a load; one at a time.
func (c *Client) StartLoad(load Load) error {
	_, err := call[struct{}](c, "load-start", load)
	return err
}

// ChangeBackend tells a running load of a change.
func (c *Client) ChangeBackend(change BackendChange) error {
	_, err := call[struct{}](c, "load-backend", change)
	return err
}

// ReportLoad returns what became of the requests that ended since the last
// report.
func (c *Client) ReportLoad() (Report, error) { return call[Report](c, "load-report", struct{}{}) }

// StopLoad stops a load, waits for the requests under way, and returns the
// last report.
func (c *Client) StopLoad() (Report, error) { return call[Report](c, "load-stop", struct{}{}) }
