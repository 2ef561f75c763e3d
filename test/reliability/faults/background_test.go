// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// write writes objects; an API server that is just away is waited for.
func (r *rig) write(ctx context.Context, objects ...runtime.Object) error {
	return testbed.Eventually(ctx, func() error { return r.plane.Apply(ctx, objects...) })
}

// remove is write for removal.
func (r *rig) remove(ctx context.Context, objects ...runtime.Object) error {
	return testbed.Eventually(ctx, func() error { return r.plane.Delete(ctx, objects...) })
}

// background is what goes on all the time besides faults.
type background struct {
	group  sync.WaitGroup
	cancel context.CancelFunc
	// changes of other services, scalings of those under load, and queries;
	// queries that failed, as they do while nobody is there.
	changes, scalings, queries, unanswered atomic.Uint64

	mu  sync.Mutex
	err error
}

func (r *rig) startBackground(seed uint64) *background {
	ctx, cancel := context.WithCancel(context.Background())
	b := &background{cancel: cancel}
	for i, run := range []func(context.Context, *background, *rand.Rand) error{r.changeServices, r.scale, r.query} {
		random := rand.New(rand.NewPCG(seed, uint64(1000+i)))
		b.group.Go(func() {
			if err := run(ctx, b, random); err != nil && ctx.Err() == nil {
				b.mu.Lock()
				b.err = err
				b.mu.Unlock()
			}
		})
	}
	return b
}

func (b *background) stop() error {
	b.cancel()
	b.group.Wait()
	return b.err
}

func (b *background) String() string {
	return fmt.Sprintf("meanwhile: %d changes of other services, %d scalings of those under load, %d queries of agents and calculators (%d with differences or without an answer)",
		b.changes.Load(), b.scalings.Load(), b.queries.Load(), b.unanswered.Load())
}

// suffices tells what was done too rarely.
func (b *background) suffices(elapsed time.Duration) error {
	var all []error
	for _, c := range []struct {
		name       string
		have, want uint64
	}{
		{"changes of other services", b.changes.Load(), uint64(minChanges * elapsed.Seconds())},
		{"scalings", b.scalings.Load(), minScalings},
		{"queries", b.queries.Load(), minQueries},
	} {
		if c.have < c.want {
			all = append(all, fmt.Errorf("%d %s in %v prove little, want %d at least", c.have, c.name, elapsed.Round(time.Second), c.want))
		}
	}
	return errors.Join(all...)
}

const (
	// otherServices are changed besides, so many times a second.
	otherServices  = 40
	changeInterval = time.Second / 20
	firstOther     = 100
)

// changeServices makes, changes and removes other services.
func (r *rig) changeServices(ctx context.Context, b *background, random *rand.Rand) error {
	live := map[int]bool{}
	tick := time.NewTicker(changeInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		n := firstOther + random.IntN(otherServices)
		service := traffic.NewService(fmt.Sprintf("other-%d", n), n)
		for _, pod := range []int{random.IntN(5), 5 + random.IntN(5)} {
			service.Endpoints = append(service.Endpoints, endpointAt(r.Nodes[pod%2], pod))
		}
		objects, do := service.Objects(), r.plane.Apply
		switch {
		case live[n] && random.IntN(3) == 0:
			do = r.plane.Delete
			live[n] = false
		case live[n]:
			objects = objects[1:] // the slices alone
		default:
			live[n] = true
		}
		// An API server that is away misses a change.
		if do(ctx, objects...) == nil {
			b.changes.Add(1)
		}
	}
}

// endpointAt is an address of a node's pods that no pod has.
func endpointAt(node *testbed.Node, n int) testbed.Endpoint {
	v4, v6 := node.PodCIDRv4.Addr().As4(), node.PodCIDRv6.Addr().As16()
	v4[3], v6[15] = byte(220+n), byte(220+n)
	return testbed.Endpoint{IPv4: addr4(v4), IPv6: addr6(v6), NodeName: node.Name}
}

// scale takes backends from the services under load and gives them back.
func (r *rig) scale(ctx context.Context, b *background, random *rand.Rand) error {
	names := []string{traffic.Main, traffic.Near, traffic.Far}
	full := map[string][]testbed.Endpoint{}
	for _, name := range names {
		full[name] = r.traffic.Service(name).Endpoints
	}
	for ctx.Err() == nil {
		name := names[random.IntN(len(names))]
		some := slices.Clone(full[name])
		random.Shuffle(len(some), func(i, k int) { some[i], some[k] = some[k], some[i] })
		some = some[:1+random.IntN(len(some))]
		if err := r.traffic.Scale(ctx, name, some...); err != nil {
			return fmt.Errorf("scale %s: %w", name, err)
		}
		b.scalings.Add(1)
		select {
		case <-time.After(time.Duration(random.Int64N(int64(2 * time.Second)))):
		case <-ctx.Done():
		}
	}
	return nil
}

// Queries. Those that compare tell by their status that there are differences,
// as there are while something changes.
var (
	agentQueries      = []string{"status", "services", "maps", "conntrack", "diff", "repair"}
	comparingQueries  = []string{"diff", "repair"}
	calculatorQueries = []string{"status", "nodes", "dump"}
)

// query asks agents and calculators for everything they answer, and lets
// agents repair what needs no repair.
func (r *rig) query(ctx context.Context, b *background, random *rand.Rand) error {
	for {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
		if random.IntN(4) == 0 {
			query := calculatorQueries[random.IntN(len(calculatorQueries))]
			args := []string{"--calculator", "unix://" + r.ReplicaSocket(random.IntN(len(r.calculators))), query}
			if query == "dump" {
				args = append(args, r.Nodes[0].Name)
			}
			if exec.CommandContext(ctx, binaries.Ctl, args...).Run() != nil {
				b.unanswered.Add(1)
			}
			b.queries.Add(1)
			continue
		}
		node, query := random.IntN(len(r.Nodes)), agentQueries[random.IntN(len(agentQueries))]
		// An agent that nobody is just breaking has to answer.
		there := r.agentMu[node].TryLock()
		output, err := exec.CommandContext(ctx, binaries.Ctl, "--agent", "unix://"+r.Nodes[node].Socket, query).CombinedOutput()
		if there {
			r.agentMu[node].Unlock()
		}
		if err != nil {
			if there && !slices.Contains(comparingQueries, query) {
				return fmt.Errorf("query %s of %s: %w: %s", query, r.Nodes[node].Name, err, output)
			}
			b.unanswered.Add(1)
		}
		b.queries.Add(1)
	}
}
