// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Two agents with one node's name. A new stream takes over from an older one,
// because the older one's connection may be dead without anybody knowing. An
// agent has one stream at a time, so one that was taken over and comes back
// proves that both are alive: from then on the one that is connected stays, the
// other is refused, and both are told. Taking over again would go on for ever,
// each of them programmed half of the time.

const (
	// rememberEvicted is how long an agent that was taken over is remembered:
	// longer than streams are held up by anything but being two.
	rememberEvicted = time.Hour
	// maxEvicted bounds how many are remembered for a node.
	maxEvicted = 8
	// duplicateDelay is how long a refused agent is to wait before it asks
	// again. Each time costs a connection and no more.
	duplicateDelay = 15 * time.Second
	// duplicateShown is how long after the last attempt the calculator still
	// lists the pair as a problem.
	duplicateShown = 10 * time.Minute
)

// duplicate is the other agent that was refused last.
type duplicate struct {
	peer string
	seen time.Time
}

// admitInstance decides whether the agent may take the node's stream over from
// the present one. The caller holds the node's lock.
func (n *nodeState) admitInstance(nodeName, instance, peer string, now time.Time) error {
	for old, at := range n.evicted {
		if now.Sub(at) > rememberEvicted {
			delete(n.evicted, old)
		}
	}
	if n.stream == nil || instance == "" || n.instance == "" || instance == n.instance {
		return nil
	}
	if _, returned := n.evicted[instance]; !returned {
		if n.evicted == nil || len(n.evicted) >= maxEvicted {
			n.evicted = map[string]time.Time{}
		}
		n.evicted[n.instance] = now
		return nil
	}
	n.duplicate = duplicate{peer: peer, seen: now}
	n.stream.notify(&dataplanev1.Notice{Reason: ReasonDuplicateNode, Message: fmt.Sprintf(
		"another agent, at %s, has the name of this node, %q, and is refused while this one is connected: give each node's agent its own --node-name", peer, nodeName)})
	return domain.RetryErrorf(codes.AlreadyExists, ReasonDuplicateNode, duplicateDelay,
		"another agent, at %s, has the name of this node, %q, and is connected: give each node's agent its own --node-name", n.peer, nodeName)
}

// duplicateProblem tells of a second agent that was refused lately; nil if there was
// none. The caller holds the node's lock.
func (n *nodeState) duplicateProblem(nodeName string, now time.Time) *calculatorv1.Problem {
	if n.duplicate.seen.IsZero() || now.Sub(n.duplicate.seen) > duplicateShown {
		return nil
	}
	return &calculatorv1.Problem{Kind: "Stream", Name: nodeName, Message: fmt.Sprintf(
		"two agents have this node's name: the one at %s is refused while the one at %s is connected", n.duplicate.peer, n.peer)}
}

// notify hands a notice to the goroutine that sends; a newer one replaces one
// that was not sent yet.
func (st *stream) notify(notice *dataplanev1.Notice) {
	for {
		select {
		case st.notices <- notice:
			return
		default:
		}
		select {
		case <-st.notices:
		default:
		}
	}
}
