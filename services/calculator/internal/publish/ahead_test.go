// SPDX-License-Identifier: Apache-2.0

package publish_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/errorinfo"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// An agent that knows more makes the source find out how far it is, and is
// served as soon as that is known.
func TestAgentAheadIsServedOnceTheSourceIsSure(t *testing.T) {
	var c *calculator
	c = newCalculator(t, publish.Options{Patience: 10 * time.Second, Ahead: func(node, epoch string, position map[string]uint64) string {
		if node != "n1" || epoch != "cluster/1" {
			t.Errorf("told of node %q with epoch %q", node, epoch)
		}
		go c.publisher.Reached(position)
		return ""
	}})
	c.publish(cluster(1, "n1"))
	a := newAgent(t, "n1")
	a.epoch, a.position = "cluster/1", map[string]uint64{"services": 1000}
	if got := a.connect(c).GetPosition().GetResourceVersions()["services"]; got != 1000 {
		t.Errorf("position %d, want the agent's 1000", got)
	}
}

// What the source finds out while the agent waits is in the refusal.
func TestRefusalSaysWhatTheSourceSays(t *testing.T) {
	var asked atomic.Int32
	c := newCalculator(t, publish.Options{Patience: 50 * time.Millisecond, Ahead: func(string, string, map[string]uint64) string {
		if asked.Add(1) == 1 {
			return ""
		}
		return "raise the epoch"
	}})
	c.publish(cluster(1, "n1"))
	a := newAgent(t, "n1")
	a.epoch, a.position = "cluster/1", map[string]uint64{"services": 1000}
	a.dial(c)
	a.send(a.hello())
	_, err := a.tryBatch()
	if status.Code(err) != codes.Unavailable || errorinfo.Reason(err) != publish.ReasonBehindPosition ||
		!strings.Contains(err.Error(), "services 10 < 1000") || !strings.Contains(err.Error(), "raise the epoch") {
		t.Errorf("error %v", err)
	}
}
