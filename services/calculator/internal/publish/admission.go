// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"container/list"
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

// admission paces agents that join: when a thousand come back at once, a few
// are brought up at a time and the others wait in the order they came. A turn
// is a lease: an agent that does not read keeps its turn for a while only, and
// goes on without.
type admission struct {
	limit int           // turns at a time
	lease time.Duration // of one turn
	wait  time.Duration // for a turn, at most

	mu      sync.Mutex
	running int
	waiting list.List // of *turn, oldest first
	// pace is how long a turn took lately.
	pace time.Duration
}

// turn is one agent's.
type turn struct {
	granted chan struct{}
	begun   time.Time
	once    sync.Once
	expiry  *time.Timer
}

// What an agent that was not admitted is told to wait, at least and at most.
const (
	leastDelay = time.Second
	mostDelay  = 30 * time.Second
)

func newAdmission(limit int, lease, wait time.Duration) *admission {
	return &admission{limit: limit, lease: lease, wait: wait}
}

// enter waits for a turn. The function it returns ends the turn and may be
// called more than once. closed ends the wait as well as ctx.
func (a *admission) enter(ctx context.Context, closed <-chan struct{}) (leave func(), err error) {
	t := &turn{granted: make(chan struct{})}
	a.mu.Lock()
	if a.running < a.limit && a.waiting.Len() == 0 {
		a.grant(t)
		a.mu.Unlock()
		return func() { a.leave(t) }, nil
	}
	place := a.waiting.PushBack(t)
	a.mu.Unlock()

	patience := time.NewTimer(a.wait)
	defer patience.Stop()
	select {
	case <-t.granted:
		return func() { a.leave(t) }, nil
	case <-patience.C:
		err = a.busy()
	case <-closed:
		err = errDraining()
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.mu.Lock()
	select {
	case <-t.granted: // at the same moment: hand it on
		a.mu.Unlock()
		a.leave(t)
	default:
		a.waiting.Remove(place)
		a.mu.Unlock()
	}
	return nil, err
}

// grant gives a turn; the caller holds the lock.
func (a *admission) grant(t *turn) {
	a.running++
	t.begun = time.Now()
	t.expiry = time.AfterFunc(a.lease, func() { a.leave(t) })
	close(t.granted)
}

func (a *admission) leave(t *turn) {
	t.once.Do(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		t.expiry.Stop()
		a.running--
		took := time.Since(t.begun)
		a.pace += (took - a.pace) / 8
		for a.running < a.limit && a.waiting.Len() > 0 {
			a.grant(a.waiting.Remove(a.waiting.Front()).(*turn))
		}
	})
}

// load returns how many have a turn and how many wait for one.
func (a *admission) load() (running, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running, a.waiting.Len()
}

// busy refuses an agent and tells it how long those before it will take.
func (a *admission) busy() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ahead := a.waiting.Len()
	delay := time.Duration(ahead/a.limit+1) * a.pace
	return domain.RetryErrorf(codes.Unavailable, ReasonBusy, min(max(delay, leastDelay), mostDelay),
		"%d agents are being brought up and %d wait", a.running, ahead)
}
