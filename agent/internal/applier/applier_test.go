// SPDX-License-Identifier: Apache-2.0

package applier

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// plane is a dataplane that records and can be held up.
type plane struct {
	dataplane.Dataplane
	mu      sync.Mutex
	changes []dataplane.Change
	retries int
	result  dataplane.Result
	entered chan struct{} // an element for each Apply that began
	gate    chan struct{} // nil, or what Apply waits for
}

func (p *plane) Apply(_ context.Context, c dataplane.Change) dataplane.Result {
	if p.gate != nil {
		p.entered <- struct{}{}
		<-p.gate
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changes = append(p.changes, c)
	return p.result
}

func (p *plane) Refresh(context.Context) dataplane.Result { return p.result }

func (p *plane) Retry(context.Context) dataplane.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.retries++
	p.result = dataplane.Result{}
	return p.result
}

// journal records what is logged, and fails while told to.
type journal struct {
	mu      sync.Mutex
	fault   error
	batches []*held.Batch
	tried   chan struct{}
	place   string // what is wrong with it
	store   *held.Store
}

func (j *journal) Append(b *held.Batch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	select {
	case j.tried <- struct{}{}:
	default:
	}
	if j.fault != nil {
		return j.fault
	}
	j.batches = append(j.batches, b)
	j.store.Apply(b)
	return nil
}

func (j *journal) Fault() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.place
}

// stream collects acknowledgements.
type stream struct {
	acks     chan *dataplanev1.Ack
	mismatch chan struct{}
}

func (s *stream) Acknowledge(a *dataplanev1.Ack) { s.acks <- a }
func (s *stream) Report(*dataplanev1.Report)     {}
func (s *stream) Mismatch()                      { s.mismatch <- struct{}{} }

func start(t *testing.T, p *plane, j *journal) (*Applier, *stream, *held.Store) {
	t.Helper()
	store := held.New()
	j.store = store
	a := New(store, j, p, metrics.New("test"), zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	s := &stream{acks: make(chan *dataplanev1.Ack, 16), mismatch: make(chan struct{}, 1)}
	if err := a.Attach(ctx, s); err != nil {
		t.Fatal(err)
	}
	return a, s, store
}

func batchOf(keys ...string) *held.Batch {
	b := held.NewBatch()
	for _, key := range keys {
		b.Upsert(held.Name{Type: 5, Key: key}, held.Entry{Version: 1})
	}
	return b
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came in 20 s")
		panic("unreachable")
	}
}

// TestCoalesce holds the first batch up while three more come: they are applied
// as one, with one acknowledgement of the last.
func TestCoalesce(t *testing.T) {
	p := &plane{entered: make(chan struct{}, 4), gate: make(chan struct{})}
	j := &journal{}
	a, s, store := start(t, p, j)
	a.Submit(batchOf("a"), Commit{Revision: 1})
	receive(t, p.entered)
	a.Submit(batchOf("b", "c"), Commit{Revision: 2, InSync: true})
	removal := held.NewBatch()
	removal.Remove(held.Name{Type: 5, Key: "b"})
	a.Submit(removal, Commit{Revision: 3})
	a.Submit(batchOf("d"), Commit{Revision: 4})
	close(p.gate)
	if ack := receive(t, s.acks); ack.GetProgrammedRevision() != 1 {
		t.Fatalf("first ack %v", ack)
	}
	receive(t, p.entered)
	if ack := receive(t, s.acks); ack.GetProgrammedRevision() != 4 {
		t.Fatalf("second ack %v", ack)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.changes) != 2 || !p.changes[1].InSync || len(p.changes[1].Names) != 3 {
		t.Fatalf("changes %+v", p.changes)
	}
	want := []string{"a", "c", "d"}
	if got := store.Keys(5); !slices.Equal(got, want) {
		t.Fatalf("held %v, want %v", got, want)
	}
	if len(j.batches) != 2 {
		t.Fatalf("%d records", len(j.batches))
	}
}

// TestLogFirst lets the log fail: nothing is programmed until it works again.
func TestLogFirst(t *testing.T) {
	p := &plane{}
	j := &journal{fault: errors.New("disk full"), tried: make(chan struct{}, 1)}
	a, s, store := start(t, p, j)
	a.Submit(batchOf("a"), Commit{Revision: 7})
	receive(t, j.tried)
	if err := a.call(context.Background(), func(context.Context) {}); err != nil {
		t.Fatal(err)
	}
	if n := len(store.Names()); n != 0 {
		t.Fatalf("%d resources are held though they were not logged", n)
	}
	if problems := a.Status().Problems; len(problems) != 1 {
		t.Fatalf("problems %q, want that of the log", problems)
	}
	j.mu.Lock()
	j.fault = nil
	j.mu.Unlock()
	a.Submit(batchOf("b"), Commit{Revision: 8})
	if ack := receive(t, s.acks); ack.GetProgrammedRevision() != 8 {
		t.Fatalf("ack %v", ack)
	}
	if got := store.Keys(5); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("held %v", got)
	}
	if problems := a.Status().Problems; len(problems) != 0 {
		t.Fatalf("problems %q", problems)
	}
}

// TestErrors follows an error from its first revision to its end by a retry.
func TestErrors(t *testing.T) {
	name := held.Name{Type: 5, Key: "x/y"}
	failing := dataplane.Result{Errors: []*dataplanev1.ResourceError{dataplane.NewError(name, "MAP_FULL", "", "full")}, Retry: true}
	p := &plane{}
	a, s, _ := start(t, p, &journal{})
	a.Submit(batchOf("a"), Commit{Revision: 3})
	receive(t, s.acks)
	p.mu.Lock()
	p.result = failing
	p.mu.Unlock()
	a.Submit(batchOf("b"), Commit{Revision: 4})
	ack := receive(t, s.acks)
	if ack.GetProgrammedRevision() != 4 || ack.GetLowestFailedRevision() != 4 || ack.GetErrorCount() != 1 || ack.GetErrors()[0].GetReason() != "MAP_FULL" {
		t.Fatalf("ack %v", ack)
	}
	ack = receive(t, s.acks) // of the retry
	if ack.GetProgrammedRevision() != 4 || ack.GetLowestFailedRevision() != 0 || ack.GetErrorCount() != 0 {
		t.Fatalf("ack %v", ack)
	}
}

// TestDigest refuses to believe that it is in sync with another digest.
func TestDigest(t *testing.T) {
	p := &plane{}
	a, s, _ := start(t, p, &journal{})
	a.Submit(batchOf("a"), Commit{Revision: 1, InSync: true, Digest: 12345})
	receive(t, s.mismatch)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changes[0].InSync {
		t.Fatal("the dataplane was told that it may prune")
	}
}

// TestLogElsewhere has a log that works but is not where it should be: everything
// is programmed, and the status and the calculator are told.
func TestLogElsewhere(t *testing.T) {
	j := &journal{place: "it is in memory"}
	a, s, _ := start(t, &plane{}, j)
	a.Submit(batchOf("a"), Commit{Revision: 1})
	receive(t, s.acks)
	if problems := a.Status().Problems; !slices.Equal(problems, []string{"it is in memory"}) {
		t.Fatalf("problems %q", problems)
	}
	j.mu.Lock()
	j.place = ""
	j.mu.Unlock()
	if err := a.LogChanged(context.Background()); err != nil {
		t.Fatal(err)
	}
	if problems := a.Status().Problems; len(problems) != 0 {
		t.Fatalf("problems %q", problems)
	}
}
