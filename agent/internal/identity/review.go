// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

const (
	// allowedFor is how long a calculator is not asked again about a bearer who may
	// read, allowedAway how long while none answers. rejectedFor is how long
	// it is not asked about one who may not.
	allowedFor  = time.Minute
	allowedAway = 10 * time.Minute
	rejectedFor = 10 * time.Second
	// reviewTime is how long a calculator may take, longer than it waits itself.
	reviewTime = 20 * time.Second
	// maxReviews bounds how many are remembered, parallelReviews how many run at a
	// time.
	maxReviews      = 1 << 10
	parallelReviews = 4
	retryAfter      = 2 * time.Second
)

// Connection returns the connection to the calculator that the agent has a
// stream with; false if there is none.
type Connection func() (grpc.ClientConnInterface, bool)

// Reviewer has calculators review what is shown to the agent, which has no
// client of the API server.
type Reviewer struct {
	connection Connection
	slots      chan struct{}

	mu    sync.Mutex
	known map[[sha256.Size]byte]review
}

// review is what a calculator has answered.
type review struct {
	refused     error // nil if allowed
	fresh, last time.Time
}

// NewReviewer returns a reviewer.
func NewReviewer(connection Connection) *Reviewer {
	return &Reviewer{connection: connection, slots: make(chan struct{}, parallelReviews), known: map[[sha256.Size]byte]review{}}
}

// review returns nil if the bearer of a token may call a method.
func (r *Reviewer) review(ctx context.Context, token, method string) error {
	key := sha256.Sum256([]byte(method + "\x00" + token))
	r.mu.Lock()
	old, ok := r.known[key]
	r.mu.Unlock()
	if ok && time.Now().Before(old.fresh) {
		return old.refused
	}
	err := r.ask(ctx, token, method)
	now := time.Now()
	switch status.Code(err) {
	case codes.OK:
		r.remember(key, review{fresh: now.Add(allowedFor), last: now.Add(allowedAway)}, now)
	case codes.Unauthenticated, codes.PermissionDenied:
		if access.ReasonOf(err) == "" {
			break
		}
		r.remember(key, review{refused: err, fresh: now.Add(rejectedFor), last: now.Add(rejectedFor)}, now)
		return err
	default:
		if ok && old.refused == nil && now.Before(old.last) {
			return nil
		}
	}
	if err != nil && access.ReasonOf(err) == "" {
		return access.Defer(access.ReasonReviewFailed, retryAfter, "the token cannot be reviewed now: no calculator answers this agent: %s", status.Convert(err).Message())
	}
	return err
}

// ask asks the calculator that the agent is connected to.
func (r *Reviewer) ask(ctx context.Context, token, method string) error {
	conn, ok := r.connection()
	if !ok {
		return status.Error(codes.Unavailable, "none is connected")
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTime)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return access.Defer(access.ReasonReviewBusy, retryAfter, "too many credentials wait to be reviewed")
	}
	defer func() { <-r.slots }()
	_, err := calculatorv1.NewAccessServiceClient(conn).ReviewAccess(ctx, &calculatorv1.ReviewAccessRequest{Token: token, Method: method})
	return err
}

func (r *Reviewer) remember(key [sha256.Size]byte, answer review, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.known[key]; !ok && len(r.known) >= maxReviews {
		for key, answer := range r.known {
			if now.After(answer.last) {
				delete(r.known, key)
			}
		}
		for key := range r.known {
			if len(r.known) < maxReviews {
				break
			}
			delete(r.known, key)
		}
	}
	r.known[key] = answer
}
