// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"fmt"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"github.com/millrace-project/millrace/test/testbed"
)

// How long each side may take to notice that the other is gone without a word:
// silence until it asks, and time for the answer. slack is for a busy machine.
const (
	agentNotices      = 15 * time.Second
	calculatorNotices = 20 * time.Second
	slack             = 15 * time.Second
)

// startHalfOpen makes the network between the second agent and its calculator
// lose everything, in both directions and without an error. The function it
// returns waits until both have noticed, and mends the network.
func startHalfOpen(t *testing.T, f *fixture) (finish func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	agent := f.agents[1]
	// Both rules at once: an RST of one end would tell the other.
	if err := f.Control.Nft(fmt.Sprintf(`table inet blackhole {
		chain in { type filter hook input priority -300; ip saddr %[1]s drop; }
		chain out { type filter hook output priority -300; ip daddr %[1]s drop; }
	}`, agent.Node.IPv4)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	type outcome struct {
		took time.Duration
		err  error
	}
	notice := func(condition func() error) chan outcome {
		result := make(chan outcome, 1)
		go func() {
			err := testbed.Eventually(ctx, condition)
			result <- outcome{time.Since(began), err}
		}()
		return result
	}
	agentSide := notice(func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err == nil && status.GetCalculator().GetConnected() {
			err = fmt.Errorf("the agent takes itself for connected: %v", status.GetCalculator())
		}
		return err
	})
	calculatorSide := notice(func() error {
		for _, c := range f.calculators {
			nodes, err := c.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
			if err != nil {
				return err
			}
			for _, n := range nodes.GetNodes() {
				if n.GetName() == agent.Node.Name && n.GetConnected() {
					return fmt.Errorf("calculator %d takes the agent for connected", c.number)
				}
			}
		}
		return nil
	})
	return func() {
		t.Helper()
		defer cancel()
		for _, side := range []struct {
			name  string
			bound time.Duration
			outcome
		}{{"agent", agentNotices, <-agentSide}, {"calculator", calculatorNotices, <-calculatorSide}} {
			t.Logf("figure: the %s noticed after %v", side.name, side.took.Round(100*time.Millisecond))
			if side.err != nil || side.took > side.bound+slack {
				t.Errorf("the %s noticed after %v (%v), want %v", side.name, side.took, side.err, side.bound)
			}
		}
		if err := f.Control.Nft("delete table inet blackhole"); err != nil {
			t.Fatal(err)
		}
	}
}
