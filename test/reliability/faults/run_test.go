// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// What a run must reach to prove something, however busy the machine is.
const (
	minChanges  = 1 // of other services, a second
	minScalings = 3
	minQueries  = 10
	// maxRetransmitted is how many requests there are for each segment that TCP
	// may send once more: a busy machine answers later than TCP expects.
	maxRetransmitted = 1000
)

// minRate is of requests, a second: a soak is there for its figure.
func minRate() float64 {
	if reliability.Soak() {
		return 0.95 * rate
	}
	return 0.5 * rate
}

// TestFaults lets all faults happen to a cluster under load, one after another
// and then at random, two at a time: no request fails, and no connection has
// to be tried twice.
func TestFaults(t *testing.T) {
	number := reliability.Seed(t)
	span := 20 * time.Second
	if reliability.Soak() {
		span = 10 * time.Minute
	}
	r := startRig(t)
	background := r.startBackground(number)
	random := rand.New(rand.NewPCG(number, 0))
	r.oneByOne(t, random)
	r.atRandom(t, number, span)
	if err := background.stop(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.settled(ctx); err != nil {
		t.Error(err)
	}
	r.expectNoDifference(ctx, t)
	report, err := r.record.finish()
	if err != nil {
		t.Error(err)
	}
	elapsed := time.Since(r.record.began)
	t.Logf("figure: %v at %.0f requests/s: %v", elapsed.Round(time.Second), float64(report.Requests)/elapsed.Seconds(), report)
	t.Logf("figure: %v", background)
	for line := range strings.Lines(r.record.table()) {
		t.Log("figure:", strings.TrimSpace(line))
	}
	for _, failure := range report.Failures {
		t.Error(failure)
	}
	for _, evidence := range r.record.evidence {
		t.Log(evidence)
	}
	if report.Failed > 0 {
		t.Errorf("%d of %d requests failed", report.Failed, report.Requests)
	}
	if least := uint64(minRate() * elapsed.Seconds()); report.Requests < least {
		t.Errorf("%d requests in %v prove little, want %d at least", report.Requests, elapsed.Round(time.Second), least)
	}
	if most := report.Requests / maxRetransmitted; report.Retransmitted > most {
		t.Errorf("TCP sent %d segments once more, want %d at most", report.Retransmitted, most)
	}
	if err := background.suffices(elapsed); err != nil {
		t.Error(err)
	}
	for stream, requests := range report.Streams {
		if requests == 0 {
			t.Errorf("stream %q made no request", stream)
		}
	}
}

// oneByOne lets each fault happen once.
func (r *rig) oneByOne(t *testing.T, random *rand.Rand) {
	for _, fault := range r.faults {
		before := r.record.failed()
		if err := r.breakIt(fault, random); err != nil {
			t.Fatalf("%s: %v", fault.name, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := r.settled(ctx)
		cancel()
		if err != nil {
			t.Fatalf("after %s: %v", fault.name, err)
		}
		if after := r.record.failed(); after > before {
			t.Errorf("%s: %d requests failed", fault.name, after-before)
		}
	}
}

func (r *rig) breakIt(fault fault, random *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.record.during(fault.name, func() error { return fault.do(ctx, r, random) })
}

// atRandom lets faults happen at random, two at a time.
func (r *rig) atRandom(t *testing.T, number uint64, span time.Duration) {
	end := time.Now().Add(span)
	var group sync.WaitGroup
	for worker := range 2 {
		random := rand.New(rand.NewPCG(number, uint64(worker+1)))
		group.Go(func() {
			for time.Now().Before(end) {
				fault := r.faults[random.IntN(len(r.faults))]
				if err := r.breakIt(fault, random); err != nil {
					t.Errorf("%s: %v", fault.name, err)
					return
				}
				pause(random, time.Second)
			}
		})
	}
	group.Wait()
}

// expectNoDifference demands that the kernel of every node holds what it
// should.
func (r *rig) expectNoDifference(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, agent := range r.agents {
		err := testbed.Within(10*time.Second, func() error { return differences(ctx, agent) })
		if err != nil {
			t.Errorf("%s: %v", agent.Node.Name, err)
		}
	}
}

func differences(ctx context.Context, agent *testbed.Agent) error {
	stream, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		return err
	}
	var all []error
	for {
		difference, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.Join(all...)
		}
		if err != nil {
			return err
		}
		all = append(all, fmt.Errorf("kernel differs from what should be there: %v", difference))
	}
}

func addr4(raw [4]byte) netip.Addr { return netip.AddrFrom4(raw) }

func addr6(raw [16]byte) netip.Addr { return netip.AddrFrom16(raw) }
