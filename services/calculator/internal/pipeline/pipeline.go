// SPDX-License-Identifier: Apache-2.0

// Package pipeline joins the parts of a calculator: what a source reads goes
// into the calculation, what the calculation gives is published.
package pipeline

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// Pipeline is the sink of a source. Changes wait until the calculation is free
// and then go into it together: a lone change is published at once, a storm in
// batches as large as the calculation is slow.
type Pipeline struct {
	graph     *graph.Graph
	publisher *publish.Publisher
	problems  *Problems
	log       *zap.Logger
	// interval is the least time between two revisions. It bounds what a storm
	// of changes costs every node and is far below what a person or the
	// programming of a kernel would notice.
	interval time.Duration
	pods     pods

	mu      sync.Mutex
	waiting waiting
	synced  bool
	wake    chan struct{}
}

// waiting is what has come in since the calculation last looked.
type waiting struct {
	changes []graph.Change
	// included is the position of changes, reached that of nothing but having
	// looked.
	included, reached publish.Position
	trigger           time.Time
}

// DefaultInterval is the least time between two revisions.
const DefaultInterval = 5 * time.Millisecond

// New returns a pipeline that publishes to the publisher.
func New(publisher *publish.Publisher, problems *Problems, log *zap.Logger, interval time.Duration) *Pipeline {
	return &Pipeline{graph: graph.New(), publisher: publisher, problems: problems, log: log, interval: interval, wake: make(chan struct{}, 1)}
}

// Apply implements source.Sink.
func (p *Pipeline) Apply(changes []source.Change, position map[string]uint64) {
	now := time.Now()
	p.mu.Lock()
	for _, change := range changes {
		p.waiting.changes = append(p.waiting.changes, graph.Change{Key: change.Key, Object: change.Object})
		trigger := change.Trigger
		if trigger.IsZero() || trigger.After(now) {
			trigger = now
		}
		if p.waiting.trigger.IsZero() || trigger.Before(p.waiting.trigger) {
			p.waiting.trigger = trigger
		}
	}
	p.waiting.included = p.waiting.included.Merge(position)
	p.mu.Unlock()
	p.signal()
}

// Reached implements source.Sink.
func (p *Pipeline) Reached(position map[string]uint64) {
	p.mu.Lock()
	p.waiting.reached = p.waiting.reached.Merge(position)
	p.mu.Unlock()
	p.signal()
}

// Synced implements source.Sink.
func (p *Pipeline) Synced() {
	p.mu.Lock()
	p.synced = true
	p.mu.Unlock()
	p.signal()
}

// SetProblems implements source.Sink.
func (p *Pipeline) SetProblems(part string, problems []problem.Problem) {
	p.problems.setPart(part, problems)
}

func (p *Pipeline) signal() {
	select {
	case p.wake <- struct{}{}:
	default: // somebody has signalled already
	}
}

// Run calculates and publishes until the context ends.
func (p *Pipeline) Run(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	var position publish.Position // of everything that is in the graph
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
		select { // the pause since the last revision may not be over
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		position = p.step(position)
		pause.Reset(p.interval)
	}
}

// step feeds what waits into the graph and, once the source has been read in
// whole, publishes what comes of it.
func (p *Pipeline) step(position publish.Position) publish.Position {
	p.mu.Lock()
	batch, synced := p.waiting, p.synced
	p.waiting = waiting{}
	p.mu.Unlock()

	position = position.Merge(batch.included)
	// Last: a pod that becomes an endpoint must not be neither in between.
	defer p.pods.note(batch.changes)
	for _, change := range batch.changes {
		if change.Object != nil {
			p.graph.Upsert(change.Object)
		} else {
			p.graph.Delete(change.Key)
		}
	}
	if !synced {
		// A part of a cluster must never be published. What has been reached is
		// kept until it may be: a source says it once, and an agent that knows as
		// much from another calculator would be refused until there is more.
		p.mu.Lock()
		p.waiting.reached = p.waiting.reached.Merge(batch.reached)
		p.mu.Unlock()
		return position
	}
	output := p.graph.Flush()
	p.problems.setObjects(output.Problems)
	first := !p.publisher.Synced()
	if first || len(output.Updates) > 0 || len(output.Members) > 0 {
		if first {
			batch.trigger = time.Time{} // what was there before is no change
		}
		revision, err := p.publisher.Publish(toBatch(output, position, batch.trigger))
		if err != nil {
			p.log.Error("a resource could not be published", zap.Uint64("revision", revision), zap.Error(err))
		}
		if first {
			p.log.Info("source read in whole", zap.Any("position", position), zap.Any("resources", p.publisher.Counts()))
		} else {
			p.log.Debug("published", zap.Uint64("revision", revision), zap.Int("inputs", len(batch.changes)),
				zap.Int("updates", len(output.Updates)), zap.Int("members", len(output.Members)))
		}
	}
	p.publisher.Reached(position.Merge(batch.reached))
	return position
}

// toBatch turns what the graph gives into what is published.
func toBatch(output graph.Output, position publish.Position, trigger time.Time) publish.Batch {
	batch := publish.Batch{Position: position, Trigger: trigger, Changes: make([]publish.Change, 0, len(output.Updates))}
	for _, update := range output.Updates {
		change := publish.Change{Audience: audienceOf(update.Audience), Resource: update.Resource}
		if update.Resource == nil {
			change.Removed = true
			change.Resource = removed(update.Name)
		}
		batch.Changes = append(batch.Changes, change)
	}
	for _, member := range output.Members {
		node := publish.Node{Name: member.Node, Removed: member.Audiences == nil}
		for _, a := range member.Audiences {
			node.Audiences = append(node.Audiences, audienceOf(a))
		}
		batch.Nodes = append(batch.Nodes, node)
	}
	return batch
}

func audienceOf(a audience.Audience) publish.Audience { return publish.Audience(a.String()) }
