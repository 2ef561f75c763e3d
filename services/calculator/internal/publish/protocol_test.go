// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

func TestRefusals(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(*calculator, *agent)
		code    codes.Code
		reason  string
		names   string // the message must contain it
	}{
		{"not synced", func(c *calculator, _ *agent) {}, codes.Unavailable, publish.ReasonNotSynced, "source"},
		{"behind", func(c *calculator, a *agent) {
			c.publish(cluster(1, "n1"))
			a.position = map[string]uint64{"services": 11, "nodes": 3}
		}, codes.Unavailable, publish.ReasonBehindPosition, "services 10 < 11"},
		{"wrong epoch", func(c *calculator, a *agent) {
			c.publish(cluster(1, "n1"))
			a.epoch = "other/1"
		}, codes.FailedPrecondition, publish.ReasonWrongEpoch, "other/1"},
		{"epoch without a counter", func(c *calculator, a *agent) {
			c.publish(cluster(1, "n1"))
			a.epoch = "cluster"
		}, codes.FailedPrecondition, publish.ReasonWrongEpoch, `"cluster"`},
		{"epoch ahead", func(c *calculator, a *agent) {
			c.publish(cluster(1, "n1"))
			a.epoch = "cluster/2"
		}, codes.Unavailable, publish.ReasonBehindPosition, "cluster/2"},
		{"unknown node", func(c *calculator, a *agent) { c.publish(cluster(1, "n2")) }, codes.NotFound, publish.ReasonUnknownNode, `"n1"`},
		{"no name", func(c *calculator, a *agent) { a.node = "" }, codes.InvalidArgument, publish.ReasonMalformed, "hello.node_name"},
		{"old schema", func(c *calculator, a *agent) {
			c.service.Schemas[typeService] = 2
			c.publish(cluster(1, "n1"))
		}, codes.FailedPrecondition, publish.ReasonSchemaTooOld, "RESOURCE_TYPE_SERVICE up to schema 1"},
		{"no types", func(c *calculator, a *agent) { a.types = nil }, codes.InvalidArgument, publish.ReasonMalformed, "hello.types"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newCalculator(t, publish.Options{Patience: 50 * time.Millisecond})
			a := newAgent(t, "n1")
			test.prepare(c, a)
			a.dial(c)
			a.send(a.hello())
			_, err := a.tryBatch()
			if status.Code(err) != test.code || errorinfo.Reason(err) != test.reason || !strings.Contains(err.Error(), test.names) {
				t.Errorf("error %v with reason %q, want %v with %q naming %s", err, errorinfo.Reason(err), test.code, test.reason, test.names)
			}
			c.eventually("the end is counted", func() bool {
				return c.counter("millrace_calculator_streams_ended_total", test.reason) == 1
			})
		})
	}
}

// A stream waits a little for a calculator that is about to be ready.
func TestWaitsUntilSyncedAndCaughtUp(t *testing.T) {
	c := newCalculator(t, publish.Options{Patience: 10 * time.Second})
	a := newAgent(t, "n1")
	a.position = map[string]uint64{"services": 15, "policies": 4}
	a.dial(c)
	a.send(a.hello())
	c.publish(cluster(1, "n1"))
	c.publisher.Reached(publish.Position{"services": 15})
	commit := a.batch()
	// Reaching 15 without a change proves that 15 is what was published: the
	// agent must never be told less, and kinds that are not watched here stay.
	for range 2 {
		if got := commit.GetPosition().GetResourceVersions(); got["services"] != 15 || got["policies"] != 4 {
			t.Errorf("position %v, want services 15 and policies 4", got)
		}
		c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}, Position: publish.Position{"services": 12}})
		commit = a.batch()
		c.publish(publish.Batch{Changes: []publish.Change{removal("all", typeService, "default/x")}})
		a.batch()
	}
}

// After a setback an agent takes positions lower than it has seen, once the
// operator has raised the counter.
func TestRaisedEpochForgetsPositions(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(10, "n1"))
	a := newAgent(t, "n1")
	a.epoch, a.position = "cluster/0", map[string]uint64{"services": 1000}
	a.held[key{typeService, "default/gone"}] = 7
	commit := a.connect(c)
	if got := commit.GetPosition().GetResourceVersions()["services"]; got != 10 || a.epoch != epoch || len(a.held) != 22 {
		t.Errorf("position %d of epoch %q with %d resources, want 10 of %q with 22", got, a.epoch, len(a.held), epoch)
	}
}

func TestUnknownMessageEndsItsOwnStreamOnly(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1", "n2"))
	bad, good := newAgent(t, "n1"), newAgent(t, "n2")
	bad.connect(c)
	good.connect(c)
	unknown := &dataplanev1.SyncRequest{}
	if err := proto.Unmarshal([]byte{0xfa, 0x01, 0x02, 0x08, 0x01}, unknown); err != nil { // field 31, a message
		t.Fatal(err)
	}
	bad.send(unknown)
	_, err := bad.tryBatch()
	if status.Code(err) != codes.InvalidArgument || errorinfo.Reason(err) != publish.ReasonUnknownMessage || !strings.Contains(err.Error(), "type 31") {
		t.Errorf("error %v, want InvalidArgument naming type 31", err)
	}
	c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}})
	good.batch()
	c.eventually("it is counted", func() bool {
		return c.counter("millrace_calculator_streams_ended_total", publish.ReasonUnknownMessage) == 1
	})
	logged := c.logs.FilterMessage("stream ended").FilterFieldKey("error").All()
	if len(logged) != 1 || logged[0].ContextMap()["node"] != "n1" || !strings.Contains(fmt.Sprint(logged[0].ContextMap()["error"]), "type 31") {
		t.Errorf("log %v, want one line that names n1 and type 31", logged)
	}
	problems := c.service.Problems()
	if len(problems) != 1 || problems[0].GetName() != "n1" || !strings.Contains(problems[0].GetMessage(), "type 31") {
		t.Errorf("problems %v, want one of n1", problems)
	}
	bad.connect(c)
	if problems := c.service.Problems(); len(problems) != 0 {
		t.Errorf("problems %v after a proper stream", problems)
	}
}

func TestNewerStreamReplacesOlder(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1"))
	older, newer := newAgent(t, "n1"), newAgent(t, "n1")
	older.connect(c)
	newer.connect(c)
	if _, err := older.tryBatch(); status.Code(err) != codes.Aborted || errorinfo.Reason(err) != publish.ReasonReplaced {
		t.Errorf("the older stream ended with %v, want Aborted, %s", err, publish.ReasonReplaced)
	}
	c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}})
	newer.batch()
	if n := c.service.Nodes()[0]; !n.GetConnected() {
		t.Error("the end of the older stream made the node disconnected")
	}
}

func TestRemovedNodeIsToldSo(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1", "n2"))
	a := newAgent(t, "n1")
	a.connect(c)
	c.publish(publish.Batch{Nodes: []publish.Node{{Name: "n1", Removed: true}}, Changes: []publish.Change{removal("node/n1", typeNodeConfig, "n1")}})
	if _, err := a.tryBatch(); status.Code(err) != codes.NotFound || errorinfo.Reason(err) != publish.ReasonUnknownNode {
		t.Errorf("the stream ended with %v, want NotFound, %s", err, publish.ReasonUnknownNode)
	}
	if len(a.held) == 0 {
		t.Error("the agent was told to remove what it held")
	}
	c.eventually("n1 is forgotten", func() bool { return len(c.service.Nodes()) == 1 })
}

func TestAcksAndLag(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1"))
	if got := c.counter("millrace_calculator_lag_revisions"); got != 0 {
		t.Errorf("the metric counts a lag of %v of a node that never had an agent", got)
	}
	a := newAgent(t, "n1")
	a.connect(c)
	state := func() (lag, acked uint64, latency time.Duration) {
		n := c.service.Nodes()[0]
		return n.GetLag(), n.GetAck().GetProgrammedRevision(), n.GetLastLatency().AsDuration()
	}
	if lag, _, _ := state(); lag != 1 {
		t.Errorf("lag %d before the first ack, want 1", lag)
	}
	for i := range 3 {
		c.publish(publish.Batch{Trigger: time.Now().Add(-time.Minute), Changes: []publish.Change{upsert("all", typeService, "default/x", uint64(i+1))}})
		a.batch()
	}
	a.ack(2)
	c.eventually("revision 2 is acknowledged", func() bool { lag, acked, latency := state(); return lag == 2 && acked == 2 && latency >= time.Minute })
	a.ack(4)
	c.eventually("revision 4 is acknowledged", func() bool { lag, acked, _ := state(); return lag == 0 && acked == 4 })
	if got := c.counter("millrace_calculator_network_programming_duration_seconds"); got != 3 {
		t.Errorf("%v durations observed, want 3", got)
	}
	a.ack(5)
	if _, err := a.tryBatch(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "ack.programmed_revision") {
		t.Errorf("acknowledging what was never sent gave %v", err)
	}
}

func TestDrain(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1", "n2"))
	agents := []*agent{newAgent(t, "n1"), newAgent(t, "n2")}
	for _, a := range agents {
		a.connect(c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.service.Drain(context.Background(), "going", 10*time.Millisecond, 10*time.Second)
	}()
	for _, a := range agents {
		response, err := a.stream.Recv()
		if err != nil || response.GetDrain().GetReason() != "going" {
			t.Fatalf("got %v, %v, want drain", response, err)
		}
	}
	late := newAgent(t, "n1")
	late.dial(c)
	if _, err := late.tryBatch(); errorinfo.Reason(err) != publish.ReasonDraining {
		t.Errorf("a new stream got %v, want %s", err, publish.ReasonDraining)
	}
	select {
	case <-done:
		t.Error("Drain returned while streams are open")
	default:
	}
	for _, a := range agents {
		if err := a.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ended with %v, want EOF", err)
		}
	}
	<-done
}

func TestMalformedHeld(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(10, "n1"))
	a := newAgent(t, "n1")
	a.held[key{typeService, "default/gone"}] = 7
	a.dial(c)
	a.send(a.hello())
	for range 2 { // welcome, held_request
		if _, err := a.stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	a.send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Held{Held: &dataplanev1.Held{Bucket: 9999}}})
	if _, err := a.tryBatch(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "held.bucket") {
		t.Errorf("got %v, want InvalidArgument naming held.bucket", err)
	}
}
