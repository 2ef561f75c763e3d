// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// bigCluster is a cluster whose state does not fit into the buffers between a
// calculator and an agent.
func bigCluster(nodes ...string) publish.Batch {
	batch := cluster(1, nodes...)
	for i := range 64 {
		batch.Changes = append(batch.Changes, big("default/big-"+string(rune('a'+i)), 1))
	}
	return batch
}

func big(k string, version uint64) publish.Change {
	r := resource(typeService, k, version)
	r.GetService().Namespace = strings.Repeat("x", 100<<10)
	return publish.Change{Audience: "all", Resource: r}
}

// While one agent is brought up another that needs something waits, and one
// that holds everything does not.
func TestJoinsWaitForTheirTurn(t *testing.T) {
	c := newCalculator(t, publish.Options{JoinLimit: 1, JoinWait: 100 * time.Millisecond})
	c.publish(bigCluster("n1", "n2", "n3"))
	current := newAgent(t, "n3")
	current.connect(c)
	stalled, next := newAgent(t, "n1"), newAgent(t, "n2")
	stalled.dial(c)
	stalled.send(stalled.hello())
	c.eventually("n1 has its turn", func() bool { return c.counter("millrace_calculator_joins", "running") == 1 })
	next.dial(c)
	next.send(next.hello())
	if _, err := next.tryBatch(); errorinfo.Reason(err) != publish.ReasonBusy || status.Code(err) != codes.Unavailable || errorinfo.RetryDelay(err) == 0 {
		t.Errorf("got %v with a delay of %v, want %s with one", err, errorinfo.RetryDelay(err), publish.ReasonBusy)
	}
	current.connect(c)
	stalled.batch()
	next.connect(c)
}

// Agents that join at about the same time share one encoded state, whatever is
// published meanwhile, and get what is newer right after.
func TestJoinersShareAState(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	first := c.publish(cluster(10, "n1", "n2"))
	one, two := newAgent(t, "n1"), newAgent(t, "n2")
	one.connect(c)
	second := c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}})
	if commit := two.connect(c); commit.GetRevision() != first || commit.GetDigest() == 0 {
		t.Errorf("the second agent begins with %v, want revision %d", commit, first)
	}
	if commit := two.batch(); commit.GetRevision() != second || two.held[key{typeService, "default/x"}] != 1 {
		t.Errorf("it goes on with %v, want revision %d", commit, second)
	}
}

func TestDrainWhileWaiting(t *testing.T) {
	c := newCalculator(t, publish.Options{JoinLimit: 1, JoinWait: time.Hour})
	c.publish(bigCluster("n1", "n2"))
	stalled, next := newAgent(t, "n1"), newAgent(t, "n2")
	for i, a := range []*agent{stalled, next} {
		a.dial(c)
		a.send(a.hello())
		c.eventually("its place is taken", func() bool {
			return c.counter("millrace_calculator_joins", "running")+c.counter("millrace_calculator_joins", "waiting") == float64(i+1)
		})
	}
	go c.service.Drain(context.Background(), "going", time.Millisecond, 10*time.Second)
	if _, err := next.tryBatch(); errorinfo.Reason(err) != publish.ReasonDraining {
		t.Errorf("got %v, want %s", err, publish.ReasonDraining)
	}
}

// An old stream's agent is asked to connect anew, to wherever it likes; one
// that does not is sent away.
func TestOldStreamIsRenewed(t *testing.T) {
	c := newCalculator(t, publish.Options{MaxAge: 100 * time.Millisecond, AgeGrace: 100 * time.Millisecond})
	c.publish(cluster(1, "n1"))
	a := newAgent(t, "n1")
	a.connect(c)
	response, err := a.stream.Recv()
	if err != nil || response.GetDrain().GetCause() != dataplanev1.DrainCause_DRAIN_CAUSE_CONNECTION_AGE {
		t.Fatalf("got %v, %v, want to be asked to connect anew", response, err)
	}
	if _, err := a.stream.Recv(); errorinfo.Reason(err) != publish.ReasonConnectionAge || status.Code(err) != codes.Unavailable {
		t.Errorf("got %v, want %s", err, publish.ReasonConnectionAge)
	}
}

// Of two agents with one name the one that is connected stays, once it is
// certain that there are two; both are told.
func TestTwoAgentsWithOneName(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1"))
	one, two := newAgent(t, "n1"), newAgent(t, "n1")
	one.instance, two.instance = "one", "two"
	one.connect(c)
	two.connect(c)
	if _, err := one.tryBatch(); errorinfo.Reason(err) != publish.ReasonReplaced {
		t.Fatalf("the first agent's stream ended with %v, want %s", err, publish.ReasonReplaced)
	}
	if problems := c.service.Problems(); len(problems) != 0 {
		t.Errorf("problems %v although one of them may have been gone", problems)
	}
	for range 3 {
		one.dial(c)
		one.send(one.hello())
		if _, err := one.tryBatch(); errorinfo.Reason(err) != publish.ReasonDuplicateNode || status.Code(err) != codes.AlreadyExists || errorinfo.RetryDelay(err) == 0 {
			t.Fatalf("it came back to %v, want %s with a delay", err, publish.ReasonDuplicateNode)
		}
	}
	if problems := c.service.Problems(); len(problems) != 1 || problems[0].GetName() != "n1" {
		t.Errorf("problems %v, want one of n1", problems)
	}
	c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}})
	two.batch()
	for len(two.notices) == 0 {
		c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", c.publisher.Revision())}})
		two.batch()
	}
	if n := two.notices[0]; n.GetReason() != publish.ReasonDuplicateNode || !strings.Contains(n.GetMessage(), `"n1"`) {
		t.Errorf("the second agent was told %v", n)
	}
	if err := two.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	c.eventually("the second agent is gone", func() bool { return !c.service.Nodes()[0].GetConnected() })
	one.connect(c)
}

// A restarted agent is another process and takes over at once from the stream
// of the one before, which may look alive for a while.
func TestRestartedAgentTakesOver(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1"))
	for _, instance := range []string{"a", "b", "c", "c", "d"} {
		a := newAgent(t, "n1")
		a.instance = instance
		a.connect(c)
	}
}
