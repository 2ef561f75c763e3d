// SPDX-License-Identifier: Apache-2.0

// Package applier takes batches to the log, to the store and to the kernel, in
// that order and one at a time. Batches that arrive while one is being applied
// become one, so that a slow kernel sees fewer and larger changes, never a queue.
package applier

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Log is where batches go first.
type Log interface {
	// Append logs a batch and lets it take effect in the store, or fails and does
	// neither.
	Append(*held.Batch) error
	// Fault tells what is wrong with where the log is kept, empty if nothing is.
	Fault() string
}

// Commit describes the batch that it ends.
type Commit struct {
	Revision uint64
	Trigger  time.Time // zero if unknown
	Digest   uint64    // zero if not stated
	InSync   bool
}

// Stream is a stream that batches come by. Its methods must not block.
type Stream interface {
	// Acknowledge tells what the kernel holds.
	Acknowledge(*dataplanev1.Ack)
	// Report tells what the node found.
	Report(*dataplanev1.Report)
	// Mismatch tells that what is held is not what the calculator thinks.
	Mismatch()
}

// Limits of what an acknowledgement carries, and of retries.
const (
	maxErrors  = 100
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// largeBatch is when a batch leaves enough garbage to give it back at once.
	largeBatch = 2048
)

// Status is how far the applier is.
type Status struct {
	Programmed  uint64
	Errors      []*dataplanev1.ResourceError // at most 100
	ErrorCount  int
	Problems    []string
	LastLatency time.Duration
	// Restored tells that what the log held has been programmed.
	Restored bool
}

// Applier owns the log, the store and the dataplane.
type Applier struct {
	store   *held.Store
	journal Log
	plane   dataplane.Dataplane
	metrics *metrics.Metrics
	log     *zap.Logger

	mu     sync.Mutex
	stream Stream
	// pending is what was submitted and not taken up yet.
	pending *held.Batch
	commits []Commit
	taken   bool // a batch is being applied
	idle    *sync.Cond
	status  Status
	// extra are errors that no resource of the store has.
	extra []*dataplanev1.ResourceError

	wake chan struct{}
	do   chan func(context.Context)

	// Of the applying goroutine alone.
	revision uint64
	synced   bool                 // on this stream
	failing  map[held.Name]uint64 // since which revision
	last     dataplane.Result
	retryAt  time.Time
	backoff  time.Duration
	unlogged string // why the pending batch could not be logged
}

// New returns an applier.
func New(store *held.Store, journal Log, plane dataplane.Dataplane, m *metrics.Metrics, log *zap.Logger) *Applier {
	a := &Applier{
		store: store, journal: journal, plane: plane, metrics: m, log: log,
		wake: make(chan struct{}, 1), do: make(chan func(context.Context)), failing: map[held.Name]uint64{},
	}
	a.idle = sync.NewCond(&a.mu)
	return a
}

// Restore programs what the log held. It comes before Run.
func (a *Applier) Restore(ctx context.Context) {
	a.last = a.plane.Apply(ctx, dataplane.Change{Names: a.store.Names()})
	refreshed := a.plane.Refresh(ctx)
	a.last = refreshed
	a.note()
	a.mu.Lock()
	a.status.Restored = true
	a.mu.Unlock()
}

// Attach makes a stream the one that is told of progress. Revisions start anew.
func (a *Applier) Attach(ctx context.Context, s Stream) error {
	// What an earlier stream submitted must be held before the new one says
	// what is.
	if err := a.flush(ctx); err != nil {
		return err
	}
	return a.call(ctx, func(context.Context) {
		a.revision, a.synced = 0, false
		clear(a.failing)
		a.mu.Lock()
		a.stream = s
		a.extra = nil
		a.mu.Unlock()
	})
}

// Detach ends the telling.
func (a *Applier) Detach() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stream = nil
}

// flush waits until nothing is pending.
func (a *Applier) flush(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.idle.Broadcast()
	})
	defer stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for (a.pending != nil || a.taken) && ctx.Err() == nil {
		a.idle.Wait()
	}
	return ctx.Err()
}

// Submit hands over a batch.
func (a *Applier) Submit(batch *held.Batch, commit Commit) {
	a.metrics.Batches.Inc()
	a.mu.Lock()
	if a.pending == nil {
		a.pending = batch
	} else {
		a.pending.Merge(batch)
	}
	a.commits = append(a.commits, commit)
	a.mu.Unlock()
	a.poke()
}

func (a *Applier) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// AddError notes an error that belongs to the stream and to no held resource.
func (a *Applier) AddError(e *dataplanev1.ResourceError) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, known := range a.extra {
		if known.GetName().GetKey() == e.GetName().GetKey() {
			return
		}
	}
	a.extra = append(a.extra, e)
}

// call runs f between batches.
func (a *Applier) call(ctx context.Context, f func(context.Context)) error {
	done := make(chan struct{})
	select {
	case a.do <- func(c context.Context) { f(c); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Refresh looks at the node's devices anew.
func (a *Applier) Refresh(ctx context.Context) error {
	return a.call(ctx, func(c context.Context) {
		a.last = a.plane.Refresh(c)
		a.note()
		a.tell()
	})
}

// SetLocal takes in what the CNI plugin has told; the kernel follows before it
// returns. known is asked when it is this call's turn, so that of several
// calls the last has the newest.
func (a *Applier) SetLocal(ctx context.Context, known func() endpoints.Known) error {
	return a.call(ctx, func(c context.Context) {
		a.last = a.plane.SetLocal(c, known())
		a.note()
		a.tell()
	})
}

// Between runs f between two changes, when the kernel is what the store says as
// far as it can be.
func (a *Applier) Between(ctx context.Context, f func()) error {
	return a.call(ctx, func(context.Context) { f() })
}

// Repair removes differences between the store and the kernel.
func (a *Applier) Repair(ctx context.Context, f func(dataplane.Result) dataplane.Result) error {
	return a.call(ctx, func(context.Context) {
		a.last = f(a.last)
		a.note()
		a.tell()
	})
}

// Status returns how far the applier is.
func (a *Applier) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// Run applies until ctx ends.
func (a *Applier) Run(ctx context.Context) {
	a.armRetry()
	for {
		var retry <-chan time.Time
		if !a.retryAt.IsZero() {
			retry = time.After(time.Until(a.retryAt))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
			a.apply(ctx)
		case f := <-a.do:
			f(ctx)
			a.armRetry()
		case <-retry:
			a.retryAt = time.Time{}
			a.last = a.plane.Retry(ctx)
			a.note()
			a.tell()
			a.armRetry()
			a.apply(ctx) // a batch may wait for the log
		}
	}
}

// armRetry decides when to try again what failed.
func (a *Applier) armRetry() {
	if !a.last.Retry && a.unlogged == "" {
		a.backoff, a.retryAt = 0, time.Time{}
		return
	}
	if !a.retryAt.IsZero() {
		return
	}
	a.backoff = min(max(firstRetry, 2*a.backoff), lastRetry)
	a.retryAt = time.Now().Add(a.backoff)
}

// LogFailed notes a failure of the log.
func (a *Applier) LogFailed(err error) {
	a.metrics.LogErrors.Inc()
	a.log.Error("state log", zap.Error(err))
}

// LogChanged tells of a change of the log's fault.
func (a *Applier) LogChanged(ctx context.Context) error {
	return a.call(ctx, func(context.Context) {
		a.note()
		a.tell()
	})
}

// apply takes up everything pending.
func (a *Applier) apply(ctx context.Context) {
	a.mu.Lock()
	batch, commits := a.pending, a.commits
	a.pending, a.commits, a.taken = nil, nil, batch != nil
	a.mu.Unlock()
	if batch == nil {
		return
	}
	started := time.Now()
	if err := a.journal.Append(batch); err != nil {
		a.putBack(batch, commits)
		a.LogFailed(err)
		a.unlogged = "the state log cannot be written, so nothing new is programmed: " + err.Error()
		a.note()
		a.tell()
		a.armRetry()
		return
	}
	a.unlogged = ""
	change := dataplane.Change{Names: batch.Names()}
	for _, c := range commits {
		change.InSync = change.InSync || c.InSync
	}
	final := commits[len(commits)-1]
	mismatch := final.Digest != 0 && digestOf(a.store) != final.Digest
	if mismatch {
		// Something was missed, so what the kernel has beyond the store may be
		// what is missing from it.
		change.InSync = false
	}
	a.last = a.plane.Apply(ctx, change)
	a.metrics.ApplyDuration.Observe(time.Since(started).Seconds())
	a.revision = final.Revision
	a.settle(commits)
	if change.InSync && !a.synced {
		a.synced = true
		a.log.Info("in sync", zap.Uint64("revision", final.Revision), zap.Int("changed", len(change.Names)),
			zap.Duration("applied_in", time.Since(started)))
	}
	a.note()
	a.tell()
	a.armRetry()
	if mismatch {
		a.log.Error("what is held differs from what the calculator sent; asking anew", zap.Uint64("revision", final.Revision))
		a.metrics.RefusedBatches.WithLabelValues("digest").Inc()
		a.withStream(Stream.Mismatch)
	}
	if len(change.Names) >= largeBatch {
		// What was needed to apply this many is garbage, and more than what stays.
		batch = nil
		debug.FreeOSMemory()
	}
}

func digestOf(s *held.Store) uint64 {
	d := s.Digests()
	return d.Sum()
}

// putBack makes a batch that could not be logged pending again, before what
// came after it.
func (a *Applier) putBack(batch *held.Batch, commits []Commit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending != nil {
		batch.Merge(a.pending)
	}
	a.pending, a.commits, a.taken = batch, append(commits, a.commits...), false
}
