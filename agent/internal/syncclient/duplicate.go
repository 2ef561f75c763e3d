// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"fmt"
	"time"

	"google.golang.org/grpc/status"
)

// Reasons of calculators that tell of another agent with this node's name. An
// agent has one stream at a time, so that nobody but another agent replaces it.
const (
	reasonReplaced  = "REPLACED"
	reasonDuplicate = "DUPLICATE_NODE"
)

// duplicateShown is how long another agent with this node's name is told of
// after the last sign of it. Agents that are connected to different
// calculators give no sign until they meet again.
const duplicateShown = time.Hour

// duplicate is the last sign of another agent with this node's name.
type duplicate struct {
	message string
	seen    time.Time
}

// noteDuplicate remembers a sign of another agent with this node's name.
func (c *Client) noteDuplicate(message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.duplicate = duplicate{message, time.Now()}
}

// noteRefusal looks whether a stream ended because of such an agent.
func (c *Client) noteRefusal(reason string, err error) {
	if reason == reasonReplaced || reason == reasonDuplicate {
		c.noteDuplicate(status.Convert(err).Message())
	}
}

// problems tells what is wrong with the streams, but for that there is none.
// The caller holds the lock.
func (c *Client) problems(now time.Time) []string {
	if c.duplicate.seen.IsZero() || now.Sub(c.duplicate.seen) > duplicateShown {
		return nil
	}
	return []string{fmt.Sprintf("two agents have the name of this node, %q, last seen %s: %s",
		c.options.Node, c.duplicate.seen.UTC().Format(time.RFC3339), c.duplicate.message)}
}
