// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// fault is something that happens to the cluster. It leaves the cluster in
// order.
type fault struct {
	name string
	do   func(ctx context.Context, r *rig, random *rand.Rand) error
}

// faults that can be made anywhere.
var faults = []fault{
	{"agent killed", agentKilled},
	{"agent killed while starting", agentKilledStarting},
	{"agent stopped in order", agentStopped},
	{"agents of all nodes killed", agentsKilled},
	{"calculator killed", calculatorKilled},
	{"calculator stopped in order", calculatorStopped},
	{"no calculator, agents killed", calculatorsAway},
	{"API server restarted", apiServerRestarted},
	{"maps enlarged by flags", mapsEnlarged},
	{"maps of flows enlarged on demand", flowMapsEnlarged},
	{"devices made and removed", devices},
	{"uplink address added and removed", uplinkAddress},
	{"pods made and removed", pods},
}

// ofPreviousRelease takes the history of the repository.
var ofPreviousRelease = fault{"agent of the previous release", previousRelease}

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
// step. The first ones of frontends and flows do not suffice for the services
// that come and go and for the load, so that they grow by themselves as well.
func sizes(step int) map[string]uint32 {
	return map[string]uint32{
		"frontends": 128 << step, "backends": 4096 << step, "routes": 1024 << step,
		"embryonic": 1024 << step, "established": 2048 << step, "ids": 1024 << step,
	}
}

func arguments(sizes map[string]uint32) []string {
	var list []string
	for name, size := range sizes {
		list = append(list, fmt.Sprintf("--max-%s=%d", name, size))
	}
	return list
}

// maxStep bounds how often maps are enlarged.
const maxStep = 4

// mapsEnlarged restarts an agent with larger maps, or with the first sizes
// when they have become large: they stay as they are then.
func mapsEnlarged(ctx context.Context, r *rig, random *rand.Rand) error {
	node := random.IntN(len(r.agents))
	r.agentMu[node].Lock()
	r.steps[node] = (r.steps[node] + 1) % (maxStep + 1)
	wanted := sizes(r.steps[node])
	r.agentMu[node].Unlock()
	err := r.withAgent(ctx, node, stop, func(agent *testbed.Agent) error {
		agent.SetArgs(arguments(wanted)...)
		return nil
	})
	if err != nil {
		return err
	}
	// Calls have no limit of their own, so that it is told what is too small.
	return testbed.Eventually(ctx, func() error { return checkSizes(context.Background(), r.agents[node], wanted) })
}

// checkSizes tells which map is smaller than wanted.
func checkSizes(ctx context.Context, agent *testbed.Agent, wanted map[string]uint32) error {
	answer, err := agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return err
	}
	for _, state := range answer.GetMaps() {
		if size := wanted[kindOf(state)]; state.GetMaxEntries() < size {
			return fmt.Errorf("%s of %s holds %d entries, wanted are %d", state.GetName(), agent.Node.Name, state.GetMaxEntries(), size)
		}
	}
	return nil
}

// flowMapsEnlarged asks an agent for maps of flows of twice the size.
func flowMapsEnlarged(ctx context.Context, r *rig, random *rand.Rand) error {
	const largest = 1 << 17
	node := random.IntN(len(r.agents))
	r.agentMu[node].Lock()
	defer r.agentMu[node].Unlock()
	agent := r.agents[node]
	answer, err := agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return err
	}
	for _, state := range answer.GetMaps() {
		kind := kindOf(state)
		if size := 2 * state.GetMaxEntries(); (kind == "embryonic" || kind == "established") && size <= largest {
			// One that is just growing by itself is done with first.
			err := testbed.Eventually(ctx, func() error {
				_, err := agent.GrowMap(ctx, &agentv1.GrowMapRequest{Name: state.GetName(), MaxEntries: size})
				if status.Code(err) == codes.FailedPrecondition { // it is as large already?
					now, failed := sizeOf(ctx, agent, state.GetName())
					if failed == nil && now >= size {
						return nil
					}
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("enlarge %s: %w", state.GetName(), err)
			}
		}
	}
	return nil
}

// kindOf is the name of a map without its family; none of those that are
// emptied into larger ones.
func kindOf(state *agentv1.MapState) string {
	if strings.HasSuffix(state.GetName(), "-draining") {
		return ""
	}
	kind, _, _ := strings.Cut(state.GetName(), "_")
	return kind
}

// sizeOf is how many entries a map holds.
func sizeOf(ctx context.Context, agent *testbed.Agent, name string) (uint32, error) {
	answer, err := agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return 0, err
	}
	for _, state := range answer.GetMaps() {
		if state.GetName() == name {
			return state.GetMaxEntries(), nil
		}
	}
	return 0, fmt.Errorf("there is no map %s", name)
}

// previousRelease runs the previous release's agent for a while: its programs
// take the place of the present ones, and these theirs.
func previousRelease(ctx context.Context, r *rig, random *rand.Rand) error {
	node := random.IntN(len(r.agents))
	for _, program := range []string{r.previous.Agent, binaries.Agent} {
		err := r.withAgent(ctx, node, stop, func(agent *testbed.Agent) error {
			agent.SetBinary(program)
			return nil
		})
		if err != nil {
			return err
		}
		pause(random, time.Second)
	}
	return nil
}
