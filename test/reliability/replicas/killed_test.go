// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// changer changes services all the time, at random, and knows how they are.
type changer struct {
	f       *fixture
	random  *rand.Rand
	current map[string]*testbed.Service // nil when deleted
	changes int
}

const changedServices = 20

func (c *changer) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := c.change(); err != nil {
			return err
		}
	}
	return nil
}

func (c *changer) change() error {
	// A change that was begun is finished, so that it is known; the API server of
	// a busy machine may take its time.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	n := c.random.IntN(changedServices)
	name := fmt.Sprint("changing-", n)
	c.changes++
	var endpoints []testbed.Endpoint
	for _, pod := range c.f.Pods() {
		if c.random.IntN(2) == 0 {
			endpoints = append(endpoints, pod.Endpoint())
		}
	}
	service := small(name, 20+n, endpoints...)
	if c.current[name] != nil && c.random.IntN(4) == 0 {
		c.current[name] = nil
		return c.f.plane.Delete(ctx, service.Objects()...)
	}
	c.current[name] = &service
	return c.f.plane.Apply(ctx, service.Objects()...)
}

// testKilled kills or stops calculators, one or the other or both, while services
// change. Nothing of the changes is lost, and what agents hold in the end is
// what either calculator computes.
func testKilled(t *testing.T, f *fixture) {
	lasts := 8 * time.Second
	if reliability.Soak() {
		lasts = 10 * time.Minute
	}
	ctx := harness.Limit(t, lasts+5*time.Minute)
	seed := reliability.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	c := &changer{f: f, random: rand.New(rand.NewPCG(seed, 1)), current: map[string]*testbed.Service{}}
	changing, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	var failed error
	group.Go(func() { failed = c.run(changing) })
	defer group.Wait()

	kills := 0
	for end := time.Now().Add(lasts); kills < 3 || time.Now().Before(end); kills++ {
		victim := f.calculators[random.IntN(2)]
		pause(ctx, time.Duration(random.IntN(1500))*time.Millisecond)
		end := victim.process.Kill
		if random.IntN(3) == 0 {
			end = victim.process.Stop // as in a rollout
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		pause(ctx, time.Duration(random.IntN(500))*time.Millisecond)
		victim.start(t)
		if random.IntN(3) > 0 {
			victim.waitSynced(ctx, t) // else it may be killed while it reads
		}
	}
	stop()
	group.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	for _, calculator := range f.calculators {
		calculator.waitSynced(ctx, t)
	}
	t.Logf("figure: %d kills, %d changes", kills, c.changes)
	if c.changes < 20 {
		t.Errorf("%d changes prove little", c.changes)
	}
	for _, agent := range f.agents {
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
		for name, service := range c.current {
			var err error
			if service != nil {
				err = agent.WaitServices(ctx, *service)
			} else {
				err = agent.WaitNoService(ctx, testbed.Service{Name: name})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		noDifferences(ctx, t, agent)
	}
	// Either calculator finds by the digests that the agent holds what it
	// computes, all of it.
	for i, calculator := range f.calculators {
		if cost := f.reconnect(ctx, t, f.agents[0], calculator, f.calculators[1-i]); cost.total() > resumeLimit {
			t.Errorf("calculator %d sent %d bytes to an agent that should have had everything", i+1, cost.total())
		}
	}
	f.openProxies(ctx, t)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (f *fixture) openProxies(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, c := range f.calculators {
		c.proxy.set(true)
	}
	f.waitInSync(ctx, t)
}

// noDifferences demands that the kernel holds what the agent's log says.
func noDifferences(ctx context.Context, t *testing.T, agent *testbed.Agent) {
	t.Helper()
	differences, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		d, err := differences.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s: the kernel differs: %v", agent.Node.Name, d)
	}
}
