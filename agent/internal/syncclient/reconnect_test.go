// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// refusedWith is a calculator's error with a reason and perhaps a delay.
func refusedWith(code codes.Code, reason, message string, delay time.Duration) error {
	return errorinfo.Domain("").RetryErrorf(code, reason, delay, "%s", message)
}

// TestRetryDelay comes again no sooner than it was told, by chance up to twice
// that.
func TestRetryDelay(t *testing.T) {
	const delay = 300 * time.Millisecond
	path := filepath.Join(t.TempDir(), "c")
	arrivals := make(chan time.Time, 100)
	serve(t, path, func(server, *dataplanev1.Hello) error {
		arrivals <- time.Now()
		return refusedWith(codes.Unavailable, "BUSY", "busy", delay)
	})
	start(t, path)
	last := <-arrivals
	for range 3 {
		next := <-arrivals
		if waited := next.Sub(last); waited < delay-10*time.Millisecond {
			t.Errorf("came again after %v, told %v", waited, delay)
		}
		last = next
	}
}

// TestBusyGoesToAnother does not wait where another calculator has room.
func TestBusyGoesToAnother(t *testing.T) {
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "busy"), func(server, *dataplanev1.Hello) error {
		return refusedWith(codes.Unavailable, "BUSY", "busy", time.Minute)
	})
	serve(t, filepath.Join(dir, "free"), func(s server, _ *dataplanev1.Hello) error {
		err := errors.Join(welcome(s, "e/1"), commit(s, 1, 1, true))
		<-s.Context().Done()
		return err
	})
	a := start(t, filepath.Join(dir, "busy"), filepath.Join(dir, "free"))
	await(t, "in sync with the free one", func() bool { return a.Status().InSync })
}

// TestBusyAndAnotherAway looks for the one that is away while the busy one has
// asked to wait.
func TestBusyAndAnotherAway(t *testing.T) {
	dir := t.TempDir()
	refused := make(chan struct{}, 100)
	serve(t, filepath.Join(dir, "busy"), func(server, *dataplanev1.Hello) error {
		refused <- struct{}{}
		return refusedWith(codes.Unavailable, "BUSY", "busy", time.Minute)
	})
	a := start(t, filepath.Join(dir, "busy"), filepath.Join(dir, "away"))
	<-refused
	serve(t, filepath.Join(dir, "away"), func(s server, _ *dataplanev1.Hello) error {
		err := errors.Join(welcome(s, "e/1"), commit(s, 1, 1, true))
		<-s.Context().Done()
		return err
	})
	await(t, "in sync with the other", func() bool { return a.Status().InSync })
	if len(refused) > 0 {
		t.Errorf("asked the busy one %d more times", len(refused))
	}
}

// TestConnectionAge goes to both calculators in the end when each asks it to
// come anew every time: it neither sticks to one nor has to leave it.
func TestConnectionAge(t *testing.T) {
	dir := t.TempDir()
	arrived := make(chan string)
	done := make(chan struct{})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(done) }) })
	for _, name := range []string{"a", "b"} {
		serve(t, filepath.Join(dir, name), func(s server, _ *dataplanev1.Hello) error {
			select {
			case arrived <- name:
			case <-done:
				return nil
			}
			err := errors.Join(welcome(s, "e/1"), s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Drain{
				Drain: &dataplanev1.Drain{Reason: "old", Cause: dataplanev1.DrainCause_DRAIN_CAUSE_CONNECTION_AGE}}}))
			<-s.Context().Done()
			return err
		})
	}
	start(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	counts, stayed, last := map[string]int{}, 0, ""
	for range 60 {
		name := <-arrived
		counts[name]++
		if name == last {
			stayed++
		}
		last = name
	}
	once.Do(func() { close(done) })
	// Each choice is a fair coin: fewer than 10 of 60 is once in 10^7 runs.
	if counts["a"] < 10 || counts["b"] < 10 || stayed < 10 || stayed > 49 {
		t.Errorf("%v, and %d times the same as before", counts, stayed)
	}
}

// TestDuplicateNode tells of another agent with this node's name, whichever of
// the two this one is.
func TestDuplicateNode(t *testing.T) {
	for name, follow := range map[string]func(server) error{
		"replaced": func(server) error {
			return refusedWith(codes.Aborted, reasonReplaced, "the agent at 192.0.2.7", time.Hour)
		},
		"refused": func(server) error {
			return refusedWith(codes.AlreadyExists, reasonDuplicate, "the agent at 192.0.2.7", time.Hour)
		},
		"noticed": func(s server) error {
			err := errors.Join(welcome(s, "e/1"), s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Notice{
				Notice: &dataplanev1.Notice{Reason: reasonDuplicate, Message: "the agent at 192.0.2.7"}}}))
			<-s.Context().Done()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c")
			instances := make(chan string, 100)
			serve(t, path, func(s server, h *dataplanev1.Hello) error {
				instances <- h.GetInstanceId()
				return follow(s)
			})
			a := start(t, path)
			await(t, "the problem is told", func() bool { return len(a.Status().Problems) == 1 })
			if p := a.Status().Problems[0]; !strings.Contains(p, "192.0.2.7") || !strings.Contains(p, `"n1"`) {
				t.Errorf("problem %q", p)
			}
			if len(<-instances) < 16 {
				t.Error("the agent has no instance_id")
			}
		})
	}
}

// TestDisconnected tells since when no calculator answers.
func TestDisconnected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	began := time.Now()
	a := start(t, path)
	if since := a.Status().Disconnected; since.Before(began) || since.After(time.Now()) {
		t.Errorf("no calculator since %v, started at %v", since, began)
	}
	g := serve(t, path, func(s server, _ *dataplanev1.Hello) error {
		err := errors.Join(welcome(s, "e/1"), commit(s, 1, 1, true))
		<-s.Context().Done()
		return err
	})
	await(t, "in sync", func() bool { return a.Status().InSync })
	if since := a.Status().Disconnected; !since.IsZero() {
		t.Errorf("no calculator since %v although one is connected", since)
	}
	lost := time.Now()
	g.Stop()
	await(t, "lost", func() bool { return !a.Status().Connected })
	since := a.Status().Disconnected
	if since.Before(lost) {
		t.Errorf("lost at %v, told %v", lost, since)
	}
	serve(t, path, func(server, *dataplanev1.Hello) error { return status.Error(codes.Unavailable, "not yet") })
	await(t, "tried again in vain", func() bool { return strings.Contains(a.Status().LastError, "not yet") })
	if again := a.Status().Disconnected; !again.Equal(since) {
		t.Errorf("no calculator since %v, later %v", since, again)
	}
}
