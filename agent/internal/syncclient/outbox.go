// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"context"
	"sync"

	"google.golang.org/protobuf/proto"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// outbox is what is to be sent. Acknowledgements and reports supersede each
// other, so that a slow stream is told the latest and queues nothing.
type outbox struct {
	mu     sync.Mutex
	queue  []*dataplanev1.SyncRequest
	ack    *dataplanev1.Ack
	report *dataplanev1.Report
	told   *dataplanev1.Report // last
	err    error
	wake   chan struct{}
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

func (o *outbox) change(f func()) {
	o.mu.Lock()
	f()
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) add(r *dataplanev1.SyncRequest) { o.change(func() { o.queue = append(o.queue, r) }) }
func (o *outbox) setAck(ack *dataplanev1.Ack)    { o.change(func() { o.ack = ack }) }

// setReport leaves out what was told last: a report comes with every
// acknowledgement, and names every pod.
func (o *outbox) setReport(report *dataplanev1.Report) {
	o.change(func() {
		if o.report = report; o.told != nil && proto.Equal(report, o.told) {
			o.report = nil
		}
	})
}

func (o *outbox) fail(err error) { o.change(func() { o.err = err }) }

// failure returns the first reason of our own to end the stream.
func (o *outbox) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// next waits for something to send; false when ctx has ended.
func (o *outbox) next(ctx context.Context) (*dataplanev1.SyncRequest, bool) {
	for {
		if r := o.take(); r != nil {
			return r, true
		}
		select {
		case <-ctx.Done():
			return nil, false
		case <-o.wake:
		}
	}
}

func (o *outbox) take() *dataplanev1.SyncRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.queue) > 0:
		r := o.queue[0]
		o.queue = o.queue[1:]
		return r
	case o.ack != nil:
		r := &dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Ack{Ack: o.ack}}
		o.ack = nil
		return r
	case o.report != nil:
		r := &dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Report{Report: o.report}}
		o.report, o.told = nil, o.report
		return r
	}
	return nil
}
