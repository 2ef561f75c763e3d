// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/millrace-project/millrace/proto/access"
)

const (
	// parallelReviews bounds how many questions the API server is asked at a time,
	// and turnWait how long one waits for its turn.
	parallelReviews = 16
	turnWait        = 10 * time.Second
	// answerTime is how long the API server may take.
	answerTime = 5 * time.Second
	// awayPause is how long those who have an older answer do not ask again after
	// the API server has failed to answer.
	awayPause = 5 * time.Second
	// rejectedFor is how long a rejection is remembered.
	rejectedFor = 10 * time.Second
	// maxAnswers and maxRejections bound what is remembered: several tokens for
	// each of 5,000 nodes take some 10 MB. Rejections are apart, so that nobody
	// can push answers out with bad tokens.
	maxAnswers    = 1 << 14
	maxRejections = 1 << 10
)

// digest stands for a token, so that none is kept.
type digest = [sha256.Size]byte

// verdict is what the API server has answered.
type verdict[T any] struct {
	value T
	// rejected is why not; nil if value counts.
	rejected error
	// fresh is until when nobody is asked again, last until when the answer counts
	// while nobody can be asked.
	fresh, last time.Time
}

// errAway wraps what kept the API server from answering.
type errAway struct{ cause error }

func (e *errAway) Error() string { return e.cause.Error() }
func (e *errAway) Unwrap() error { return e.cause }

// errBusy tells that a question did not get its turn.
var errBusy = errors.New("too many credentials wait to be reviewed")

// answers remembers what the API server answered.
type answers[T any] struct {
	slots   chan struct{}
	hits    hits
	settled func(err error) // told whether the API server answers
	group   singleflight.Group

	mu       sync.Mutex
	accepted map[digest]verdict[T]
	rejected map[digest]verdict[T]
	away     time.Time // until when the API server is taken for away
}

func newAnswers[T any](slots chan struct{}, hits hits, settled func(error)) *answers[T] {
	return &answers[T]{slots: slots, hits: hits, settled: settled,
		accepted: map[digest]verdict[T]{}, rejected: map[digest]verdict[T]{}}
}

// get returns the answer to a question: the one that is remembered, or that of
// ask, which is called once however many ask the same. ask returns an errAway if
// there is no answer.
func (a *answers[T]) get(ctx context.Context, key digest, ask func(context.Context) (verdict[T], error)) (T, error) {
	old, known := a.lookup(key, time.Now())
	if known {
		return old.value, old.rejected
	}
	result := a.group.DoChan(string(key[:]), func() (any, error) {
		// Not the caller's context: others wait for the same.
		return a.question(context.WithoutCancel(ctx), ask)
	})
	var none T
	select {
	case <-ctx.Done():
		return none, ctx.Err()
	case r := <-result:
		now := time.Now()
		if r.Err == nil {
			v := r.Val.(verdict[T])
			a.remember(key, v, now)
			return v.value, v.rejected
		}
		if old.rejected == nil && now.Before(old.last) {
			a.hits.stale.Inc()
			return old.value, nil
		}
		if errors.Is(r.Err, errBusy) {
			return none, access.Defer(access.ReasonReviewBusy, retryAfter, "%v", r.Err)
		}
		// What kept it is for operators, in this calculator's status.
		return none, access.Defer(access.ReasonReviewFailed, retryAfter, "the credential cannot be reviewed now: the API server does not answer this calculator")
	}
}

// lookup returns an answer; known tells whether it counts without asking again.
func (a *answers[T]) lookup(key digest, now time.Time) (v verdict[T], known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v, ok := a.rejected[key]; ok && now.Before(v.fresh) {
		a.hits.fresh.Inc()
		return v, true
	}
	v, ok := a.accepted[key]
	switch {
	case !ok:
		return v, false
	case now.Before(v.fresh):
		a.hits.fresh.Inc()
		return v, true
	case now.Before(a.away) && now.Before(v.last):
		a.hits.stale.Inc()
		return v, true
	}
	return v, false
}

// question asks when it is its turn.
func (a *answers[T]) question(ctx context.Context, ask func(context.Context) (verdict[T], error)) (verdict[T], error) {
	turn := time.NewTimer(turnWait)
	defer turn.Stop()
	select {
	case a.slots <- struct{}{}:
	case <-turn.C:
		return verdict[T]{}, errBusy
	}
	defer func() { <-a.slots }()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	v, err := ask(ctx)
	var away *errAway
	if errors.As(err, &away) {
		a.mu.Lock()
		a.away = time.Now().Add(awayPause)
		a.mu.Unlock()
	}
	a.settled(err)
	return v, err
}

func (a *answers[T]) remember(key digest, v verdict[T], now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = time.Time{}
	if v.rejected == nil {
		delete(a.rejected, key)
		store(a.accepted, key, v, maxAnswers, now)
		return
	}
	delete(a.accepted, key)
	store(a.rejected, key, v, maxRejections, now)
}

// store adds an answer and makes room for it if there is none: first by what
// does not count any more, then by any.
func store[T any](answers map[digest]verdict[T], key digest, v verdict[T], room int, now time.Time) {
	if _, ok := answers[key]; !ok && len(answers) >= room {
		for key, v := range answers {
			if now.After(v.last) {
				delete(answers, key)
			}
		}
		for key := range answers {
			if len(answers) < room {
				break
			}
			delete(answers, key)
		}
	}
	answers[key] = v
}
