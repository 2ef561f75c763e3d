// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

func TestJoinGetsEverythingInOrder(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(5000, "n1", "n2"))
	a := newAgent(t, "n1")
	commit := a.connect(c)
	if !commit.GetInSync() || commit.GetRevision() != 1 || commit.GetDigest() == 0 {
		t.Errorf("first commit is %v, want revision 1, in sync, with a digest", commit)
	}
	if want := 1 + 2 + 2*5000; len(a.held) != want || a.upserts != want {
		t.Errorf("the agent holds %d resources after %d upserts, want %d", len(a.held), a.upserts, want)
	}
	if _, ok := a.held[key{typeNodeConfig, "n2"}]; ok {
		t.Error("n1 was given the configuration of n2")
	}
	if !slices.IsSorted(a.order) {
		t.Error("the resources did not come ordered by type and key")
	}
	if a.largest > 256<<10 || a.largest < 200<<10 {
		t.Errorf("the largest message has %d bytes, want just below 256 KiB", a.largest)
	}
}

func TestResumeWithNothingChangedSendsNoResources(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1000, "n1"))
	a := newAgent(t, "n1")
	a.connect(c)
	for range 2 {
		commit := a.connect(c)
		if !commit.GetInSync() || a.upserts+a.removals != 0 || a.asked != 0 || a.bytes != 0 {
			t.Errorf("resume: in_sync %v, %d upserts, %d removals, %d buckets asked, %d bytes; want in sync and no more",
				commit.GetInSync(), a.upserts, a.removals, a.asked, a.bytes)
		}
	}
}

// Versions have no memory of who made them, so another replica resumes as well.
func TestResumeOnAnotherReplica(t *testing.T) {
	first, second := newCalculator(t, publish.Options{}), newCalculator(t, publish.Options{})
	first.publish(cluster(1000, "n1"))
	batch := cluster(1000, "n1")
	slices.Reverse(batch.Changes)
	second.publish(publish.Batch{Changes: batch.Changes[:700]})
	second.publish(publish.Batch{Changes: batch.Changes[700:], Nodes: batch.Nodes, Position: batch.Position})
	a := newAgent(t, "n1")
	a.connect(first)
	a.connect(second)
	if a.upserts+a.removals+a.asked+a.bytes != 0 {
		t.Errorf("the other replica sent %d upserts, %d removals, asked for %d buckets, sent %d bytes", a.upserts, a.removals, a.asked, a.bytes)
	}
}

func TestResumeSendsWhatDiffers(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1000, "n1"))
	a := newAgent(t, "n1")
	a.connect(c)
	c.publish(publish.Batch{Changes: []publish.Change{
		upsert("all", typeService, "default/service-3", 2),
		upsert("all", typeService, "default/new", 1),
		removal("all", typeService, "default/service-4"),
		removal("all", typeBackendSlice, "default/service-4/0"),
	}})
	a.connect(c)
	want := []string{"+5 default/new", "+5 default/service-3", "-5 default/service-4", "-4 default/service-4/0"}
	if !slices.Equal(a.order, want) {
		t.Errorf("resume sent %v, want %v", a.order, want)
	}
	if a.asked == 0 || a.asked > 4 {
		t.Errorf("%d buckets were asked for, want 1 to 4", a.asked)
	}
}

// What an agent holds of a resource that the calculator never heard of goes.
func TestResumeRemovesTheUnknown(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(10, "n1"))
	a := newAgent(t, "n1")
	a.held[key{typeService, "default/gone"}] = 7
	a.connect(c)
	if _, ok := a.held[key{typeService, "default/gone"}]; ok || len(a.held) != 22 {
		t.Errorf("the agent holds %d resources, want 22 without default/gone", len(a.held))
	}
}

func TestUpdatesAreSharedAndOrdered(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(10, "n1", "n2"))
	agents := []*agent{newAgent(t, "n1"), newAgent(t, "n2")}
	for _, a := range agents {
		a.connect(c)
	}
	trigger := time.Now().Add(-time.Second)
	revision := c.publish(publish.Batch{Trigger: trigger, Position: publish.Position{"services": 12}, Changes: []publish.Change{
		upsert("all", typeService, "default/x", 1),
		upsert("node/n1", typeEndpoint, "default/pod", 1),
		upsert("all", typeBackendSlice, "default/x/0", 1),
		removal("all", typeBackendSlice, "default/service-1/0"),
		removal("all", typeService, "default/service-1"),
	}})
	for i, a := range agents {
		commit := a.batch()
		want := []string{"+4 default/x/0", "+5 default/x", "-5 default/service-1", "-4 default/service-1/0"}
		if i == 0 {
			want = append([]string{"+3 default/pod"}, want...)
		}
		if !slices.Equal(a.order, want) {
			t.Errorf("%s was sent %v, want %v", a.node, a.order, want)
		}
		if commit.GetRevision() != revision || !commit.GetInSync() || commit.GetPosition().GetResourceVersions()["services"] != 12 ||
			!commit.GetTriggerTime().AsTime().Equal(trigger.UTC().Truncate(0)) {
			t.Errorf("%s: commit %v", a.node, commit)
		}
	}
	if got := c.counter("millrace_calculator_batches_sent_total", "shared"); got != 2 {
		t.Errorf("%v shared batches, want 2", got)
	}
}

// A revision that has nothing for a node is not sent to it; the next one is
// whole all the same, and nobody takes the node for late.
func TestOtherNodesChangesAreNotSent(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1", "n2"))
	a := newAgent(t, "n1")
	a.ack(a.connectAck(c))
	for i := range 5 {
		c.publish(publish.Batch{Changes: []publish.Change{upsert("node/n2", typeEndpoint, fmt.Sprint("default/p", i), 1)}})
	}
	c.eventually("n1 is current", func() bool {
		n1 := c.service.Nodes()[0]
		return n1.GetName() == "n1" && n1.GetLag() == 0 && n1.GetSentRevision() == 1
	})
	revision := c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1)}})
	if commit := a.batch(); commit.GetRevision() != revision || !slices.Equal(a.order, []string{"+5 default/x"}) {
		t.Errorf("revision %d brought %v", commit.GetRevision(), a.order)
	}
}

func (a *agent) connectAck(c *calculator) uint64 { return a.connect(c).GetRevision() }

// eventually waits for a condition that other goroutines bring about.
func (c *calculator) eventually(what string, condition func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("it never came about that %s", what)
		}
	}
}

func TestMembershipChanges(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	batch := cluster(1, "n1")
	batch.Changes = append(batch.Changes,
		upsert("zone/a", typeService, "default/both", 1), upsert("zone/a", typeService, "default/only-a", 1),
		upsert("zone/b", typeService, "default/both", 1), upsert("zone/b", typeService, "default/only-b", 1))
	batch.Nodes[0].Audiences = []publish.Audience{"node/n1", "zone/a", "all"}
	c.publish(batch)
	a := newAgent(t, "n1")
	a.connect(c)
	c.publish(publish.Batch{Nodes: []publish.Node{{Name: "n1", Audiences: []publish.Audience{"node/n1", "zone/b", "all"}}}})
	commit := a.batch()
	if want := []string{"+5 default/only-b", "-5 default/only-a"}; !slices.Equal(a.order, want) {
		t.Errorf("moving between zones sent %v, want %v", a.order, want)
	}
	if commit.GetDigest() != a.digests().Sum() {
		t.Errorf("digest %x, want %x", commit.GetDigest(), a.digests().Sum())
	}
}

// A resource that goes from one audience to another in one revision stays with
// the nodes of both.
func TestMoveBetweenAudiences(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	batch := cluster(1, "n1")
	batch.Changes = append(batch.Changes, upsert("node/n1", typeService, "default/moving", 1))
	c.publish(batch)
	a := newAgent(t, "n1")
	a.connect(c)
	c.publish(publish.Batch{Changes: []publish.Change{
		removal("node/n1", typeService, "default/moving"), upsert("all", typeService, "default/moving", 1), upsert("all", typeService, "default/x", 1)}})
	a.batch()
	if want := []string{"+5 default/x"}; !slices.Equal(a.order, want) {
		t.Errorf("sent %v, want %v", a.order, want)
	}
}

func TestUnannouncedTypesAreNotSent(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(10, "n1"))
	a := newAgent(t, "n1")
	a.types = []dataplanev1.ResourceType{typeNode, typeBackendSlice}
	a.connect(c)
	c.publish(publish.Batch{Changes: []publish.Change{upsert("all", typeService, "default/x", 1), upsert("all", typeBackendSlice, "default/x/0", 1)}})
	a.batch()
	if len(a.held) != 12 {
		t.Errorf("the agent holds %d resources, want a node and 11 slices", len(a.held))
	}
	a.connect(c)
	if a.asked != 0 {
		t.Error("types that were not announced are part of the digests")
	}
	// An agent that learns a type is given it.
	a.types = allTypes
	a.connect(c)
	if len(a.held) != 12+1+11 {
		t.Errorf("the agent holds %d resources, want 24", len(a.held))
	}
}

// An agent that does not read keeps nobody back, and afterwards gets all that
// it missed in one batch.
func TestSlowStreamSkipsRevisions(t *testing.T) {
	c := newCalculator(t, publish.Options{})
	c.publish(cluster(1, "n1", "n2"))
	slow, fast := newAgent(t, "n1"), newAgent(t, "n2")
	slow.connect(c)
	fast.connect(c)
	// Each revision replaces the one big service; the buffers between hold but
	// a few of them.
	const revisions = 200
	for i := range revisions {
		r := resource(typeService, "default/big", uint64(i+10))
		r.GetService().Namespace = strings.Repeat("x", 100<<10)
		c.publish(publish.Batch{Trigger: time.Now(), Changes: []publish.Change{{Audience: "all", Resource: r}, upsert("all", typeNode, fmt.Sprint("extra-", i), 1)}})
		fast.batch()
	}
	batches := 0
	for {
		commit := slow.batch()
		batches++
		if commit.GetRevision() == 1+revisions {
			break
		}
	}
	if batches > revisions/2 {
		t.Errorf("the slow agent got %d batches for %d revisions", batches, revisions)
	}
	if slow.held[key{typeService, "default/big"}] != revisions+9 || slow.digests().Sum()^slow.held0() != fast.digests().Sum()^fast.held0() {
		t.Error("the slow agent does not hold what the fast one does")
	}
	if c.counter("millrace_calculator_batches_sent_total", "catchup") == 0 {
		t.Error("no batch caught up")
	}
}

// held0 is the digest of what is a node's own.
func (a *agent) held0() uint64 {
	own := &agent{held: map[key]uint64{{typeNodeConfig, a.node}: 1}}
	return own.digests().Sum()
}
