// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/millrace-project/millrace/proto/errorinfo"
)

func (a *admission) await(t *testing.T, running, waiting int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r, w := a.load()
		if r == running && w == waiting {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d have a turn and %d wait, want %d and %d", r, w, running, waiting)
		}
	}
}

func TestTurnsInOrder(t *testing.T) {
	a := newAdmission(2, time.Hour, time.Hour)
	var leave []func()
	for range 2 {
		l, err := a.enter(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	order := make(chan int, 10)
	for i := range 10 {
		go func() {
			l, err := a.enter(t.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			l()
		}()
		a.await(t, 2, i+1)
	}
	leave[0]() // the second turn stays taken: one at a time goes on
	leave[0]() // and counts once
	var got []int
	for range 10 {
		got = append(got, <-order)
	}
	if !slices.IsSorted(got) {
		t.Errorf("turns were given in the order %v", got)
	}
	a.await(t, 1, 0)
}

// A turn is a lease: who does not end it keeps others waiting for a while only.
func TestTurnExpires(t *testing.T) {
	a := newAdmission(1, 20*time.Millisecond, time.Hour)
	slow, err := a.enter(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	next, err := a.enter(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	slow() // long over
	next()
	a.await(t, 0, 0)
}

func TestTurnRefused(t *testing.T) {
	a := newAdmission(1, time.Hour, 20*time.Millisecond)
	leave, err := a.enter(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.enter(t.Context(), nil)
	if delay := errorinfo.RetryDelay(err); errorinfo.Reason(err) != ReasonBusy || delay < leastDelay || delay > mostDelay {
		t.Errorf("got %v with a delay of %v, want %s and a delay", err, delay, ReasonBusy)
	}
	a.wait = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan struct{})
	failures := make(chan error, 2)
	for _, c := range []context.Context{ctx, t.Context()} {
		go func() { _, err := a.enter(c, closed); failures <- err }()
	}
	a.await(t, 1, 2)
	cancel()
	if err := <-failures; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	close(closed)
	if err := <-failures; errorinfo.Reason(err) != ReasonDraining {
		t.Errorf("got %v, want %s", err, ReasonDraining)
	}
	leave()
	a.await(t, 0, 0)
}
