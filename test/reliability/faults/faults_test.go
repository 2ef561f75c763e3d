// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/millrace-project/millrace/test/testbed"
)

// fault is something that happens to the cluster. It leaves the cluster in
// order.
type fault struct {
	name string
	do   func(ctx context.Context, r *rig, random *rand.Rand) error
}

var faults = []fault{
	{"agent killed", agentKilled},
	{"agent killed while starting", agentKilledStarting},
	{"agent stopped in order", agentStopped},
	{"agents of all nodes killed", agentsKilled},
	{"calculator killed", calculatorKilled},
	{"calculator stopped in order", calculatorStopped},
	{"no calculator, agents killed", calculatorsAway},
	{"API server restarted", apiServerRestarted},
	{"maps enlarged", mapsEnlarged},
	{"devices made and removed", devices},
	{"uplink address added and removed", uplinkAddress},
	{"pods made and removed", pods},
}

// pause waits up to a time.
func pause(random *rand.Rand, most time.Duration) {
	time.Sleep(time.Duration(random.Int64N(int64(most))))
}

// withAgent ends a node's agent and starts it again.
func (r *rig) withAgent(ctx context.Context, node int, end func(*testbed.Agent) error, meanwhile func(*testbed.Agent) error) error {
	r.agentMu[node].Lock()
	defer r.agentMu[node].Unlock()
	agent := r.agents[node]
	if err := end(agent); err != nil {
		return err
	}
	if err := meanwhile(agent); err != nil {
		return err
	}
	if err := agent.Start(); err != nil {
		return err
	}
	return agent.WaitInSync(ctx)
}

func kill(agent *testbed.Agent) error { return agent.Process.Kill() }
func stop(agent *testbed.Agent) error { return agent.Process.Stop() }

func agentKilled(ctx context.Context, r *rig, random *rand.Rand) error {
	return r.withAgent(ctx, random.IntN(len(r.agents)), kill, func(*testbed.Agent) error {
		pause(random, 500*time.Millisecond)
		return nil
	})
}

func agentStopped(ctx context.Context, r *rig, random *rand.Rand) error {
	return r.withAgent(ctx, random.IntN(len(r.agents)), stop, func(*testbed.Agent) error { return nil })
}

// agentKilledStarting kills an agent again and again while it starts.
func agentKilledStarting(ctx context.Context, r *rig, random *rand.Rand) error {
	return r.withAgent(ctx, random.IntN(len(r.agents)), kill, func(agent *testbed.Agent) error {
		for range 3 {
			if err := agent.Launch(); err != nil {
				return err
			}
			pause(random, 700*time.Millisecond)
			if err := kill(agent); err != nil {
				return err
			}
		}
		return nil
	})
}

func agentsKilled(ctx context.Context, r *rig, random *rand.Rand) error {
	var all []error
	done := make(chan error)
	for node := range r.agents {
		go func() {
			done <- r.withAgent(ctx, node, kill, func(*testbed.Agent) error { return nil })
		}()
	}
	for range r.agents {
		all = append(all, <-done)
	}
	return errors.Join(all...)
}

// endCalculator ends one calculator and waits until the agents are with the
// other one before it is started again.
func (r *rig) endCalculator(ctx context.Context, random *rand.Rand, end func(*testbed.Process) error) error {
	r.calculatorsMu.Lock()
	defer r.calculatorsMu.Unlock()
	calculator := r.calculators[random.IntN(len(r.calculators))]
	if err := end(calculator.Process); err != nil {
		return err
	}
	// Unless the agents are away themselves.
	if err := r.traffic.Barrier(ctx); err != nil {
		return err
	}
	if err := calculator.Start(); err != nil {
		return err
	}
	return r.calculatorsSynced(ctx)
}

// calculatorsSynced waits until the calculators have read everything, which
// they cannot while the API server is away.
func (r *rig) calculatorsSynced(ctx context.Context) error {
	for _, calculator := range r.calculators {
		if err := calculator.WaitSynced(ctx); err != nil {
			return err
		}
	}
	return nil
}

func calculatorKilled(ctx context.Context, r *rig, random *rand.Rand) error {
	return r.endCalculator(ctx, random, (*testbed.Process).Kill)
}

func calculatorStopped(ctx context.Context, r *rig, random *rand.Rand) error {
	return r.endCalculator(ctx, random, (*testbed.Process).Stop)
}

// calculatorsAway kills all calculators, and while they are away the agents,
// which go on from their logs.
func calculatorsAway(ctx context.Context, r *rig, random *rand.Rand) error {
	// No agent may be waited for while there is no calculator.
	for node := range r.agents {
		r.agentMu[node].Lock()
		defer r.agentMu[node].Unlock()
	}
	r.calculatorsMu.Lock()
	defer r.calculatorsMu.Unlock()
	for _, calculator := range r.calculators {
		if err := calculator.Process.Kill(); err != nil {
			return err
		}
	}
	for _, agent := range r.agents {
		if err := kill(agent); err != nil {
			return err
		}
		pause(random, 300*time.Millisecond)
		if err := agent.Start(); err != nil {
			return err
		}
	}
	pause(random, 2*time.Second)
	for _, calculator := range r.calculators {
		if err := calculator.Start(); err != nil {
			return err
		}
	}
	if err := r.calculatorsSynced(ctx); err != nil {
		return err
	}
	return r.traffic.Barrier(ctx)
}

func apiServerRestarted(ctx context.Context, r *rig, _ *rand.Rand) error {
	r.planeMu.Lock()
	defer r.planeMu.Unlock()
	if err := r.plane.StopAPIServer(); err != nil {
		return err
	}
	return r.plane.StartAPIServer(ctx)
}

// sizes are arguments that make an agent's maps the larger the greater the
// step.
func sizes(step int) []string {
	size := func(flag string, first int) string { return "--max-" + flag + "=" + strconv.Itoa(first<<step) }
	return []string{
		size("frontends", 2048), size("backends", 4096), size("routes", 1024),
		size("embryonic", 8192), size("established", 16384), size("ids", 2048),
	}
}

// maxStep bounds how often maps are enlarged.
const maxStep = 4

// mapsEnlarged restarts an agent with larger maps, or with the first sizes
// when they have become large.
func mapsEnlarged(ctx context.Context, r *rig, random *rand.Rand) error {
	node := random.IntN(len(r.agents))
	return r.withAgent(ctx, node, stop, func(agent *testbed.Agent) error {
		r.steps[node] = (r.steps[node] + 1) % (maxStep + 1)
		agent.SetArgs(sizes(r.steps[node])...)
		return nil
	})
}
