// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// nodeState is what is known of one node's agent. It outlives the stream, so
// that one can see how far a node was when it went away.
type nodeState struct {
	mu sync.Mutex
	// stream is the newest stream of the node; nil if there is none.
	stream *stream
	peer   string
	// instance is the stream's agent; evicted are those whose streams it and
	// others have taken over, and when; duplicate is one of them that came back.
	instance     string
	evicted      map[string]time.Time
	duplicate    duplicate
	agentVersion string
	mode         dataplanev1.DataplaneMode
	connectTime  time.Time
	inSync       bool
	sent         uint64 // revision of the last commit sent
	delivered    uint64 // newest revision that held nothing unsent for the node
	ack          *dataplanev1.Ack
	latency      time.Duration
	hasLatency   bool
	report       *atomic.Pointer[dataplanev1.Report] // the last stream's; nil before the first
	// violation is how the last stream broke the protocol, if it did.
	violation string
	// pending has the batches that were sent and are not yet acknowledged.
	pending []revisionTrigger
}

// maxPending bounds the batches whose trigger times are kept per node. A node
// further behind loses resolution: its oldest pending batches become one.
const maxPending = 256

// noteSent records that a batch is on its way.
func (n *nodeState) noteSent(revision uint64, trigger time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent, n.delivered, n.inSync = revision, revision, true
	if trigger.IsZero() {
		return
	}
	if len(n.pending) >= maxPending {
		n.pending[1].trigger = n.pending[0].trigger
		n.pending = slices.Delete(n.pending, 0, 1)
	}
	n.pending = append(n.pending, revisionTrigger{revision, trigger})
}

// noteDelivered records that a revision had nothing for the node.
func (n *nodeState) noteDelivered(revision uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delivered = revision
}

// noteAck records an acknowledgement and returns how long each batch took from
// its oldest change until now.
func (n *nodeState) noteAck(ack *dataplanev1.Ack, now time.Time) []time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ack = ack
	var durations []time.Duration
	for len(n.pending) > 0 && n.pending[0].revision <= ack.GetProgrammedRevision() {
		n.latency, n.hasLatency = max(0, now.Sub(n.pending[0].trigger)), true
		durations = append(durations, n.latency)
		n.pending = n.pending[1:]
	}
	return durations
}

// lastReport is what the node's agent said last; nil if nothing. The caller holds
// mu.
func (n *nodeState) lastReport() *dataplanev1.Report {
	if n.report == nil {
		return nil
	}
	return n.report.Load()
}

// proto describes the node at the newest revision.
func (n *nodeState) proto(nodeName string, newest uint64) *calculatorv1.NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	state := &calculatorv1.NodeState{
		Name:          nodeName,
		Connected:     n.stream != nil,
		PeerAddress:   n.peer,
		AgentVersion:  n.agentVersion,
		SentRevision:  n.sent,
		Ack:           n.ack,
		DataplaneMode: n.mode,
		InSync:        n.inSync && n.stream != nil,
		Report:        n.lastReport(),
	}
	if !n.connectTime.IsZero() {
		state.ConnectTime = timestamppb.New(n.connectTime)
	}
	if n.hasLatency {
		state.LastLatency = durationpb.New(n.latency)
	}
	// A revision that has nothing for a node is not sent to it and so never
	// acknowledged; the node is as far as it was brought.
	reached := n.ack.GetProgrammedRevision()
	if n.sent > 0 && reached == n.sent {
		reached = n.delivered
	}
	state.Lag = newest - min(newest, reached)
	return state
}

// attach makes a stream the node's own and ends the one before, or tells why
// that one stays.
func (s *Service) attach(st *stream, hello *dataplanev1.Hello) (*nodeState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	node := s.nodes[st.node]
	if node == nil {
		node = &nodeState{}
		s.nodes[st.node] = node
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	if err := node.admitInstance(st.node, hello.GetInstanceId(), st.peer, time.Now()); err != nil {
		return nil, err
	}
	if node.stream != nil {
		node.stream.replacedBy = st.peer
		close(node.stream.replaced)
	}
	node.instance = hello.GetInstanceId()
	// Revisions and acknowledgements have meaning on one stream only.
	node.stream, node.peer, node.agentVersion = st, st.peer, hello.GetAgentVersion()
	node.mode, node.connectTime = hello.GetDataplaneMode(), time.Now()
	node.inSync, node.sent, node.delivered = false, 0, 0
	node.ack, node.report, node.pending, node.violation = nil, &st.report, nil, ""
	return node, nil
}

// detach notes that the stream has ended.
func detach(st *stream) {
	node := st.state.Load()
	if node == nil {
		return
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	if node.stream == st {
		node.stream = nil
	}
}

// noteViolation remembers, until the agent's next stream, that it broke the
// protocol.
func (s *Service) noteViolation(nodeName string, err error) {
	if nodeName == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	node := s.nodes[nodeName]
	if node == nil {
		if current := s.publisher.current.Load(); current == nil {
			return
		} else if _, ok := current.nodes.Get(nodeName); !ok {
			return // any name may be claimed: keep nothing of unknown ones
		}
		node = &nodeState{}
		s.nodes[nodeName] = node
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	node.violation = status.Convert(err).Message()
}

// Problems lists the agents that broke the protocol on their last stream and
// the nodes whose name two agents have.
func (s *Service) Problems() []*calculatorv1.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []*calculatorv1.Problem
	for _, nodeName := range slices.Sorted(maps.Keys(s.nodes)) {
		node := s.nodes[nodeName]
		node.mu.Lock()
		if node.violation != "" {
			problems = append(problems, &calculatorv1.Problem{Kind: "Stream", Name: nodeName,
				Message: "the agent's stream was ended: " + node.violation})
		}
		if p := node.duplicateProblem(nodeName, time.Now()); p != nil {
			problems = append(problems, p)
		}
		node.mu.Unlock()
	}
	return problems
}

// Reported has what agents that are connected here say is wrong with their nodes,
// by node.
func (s *Service) Reported() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	reported := map[string][]string{}
	for nodeName, node := range s.nodes {
		node.mu.Lock()
		if problems := node.lastReport().GetProblems(); node.stream != nil && len(problems) > 0 {
			reported[nodeName] = problems
		}
		node.mu.Unlock()
	}
	return reported
}

// Nodes describes every node of the cluster and every connected agent, by
// name.
func (s *Service) Nodes() []*calculatorv1.NodeState {
	snapshot := s.publisher.current.Load()
	s.mu.Lock()
	known := maps.Clone(s.nodes)
	names := make(map[string]struct{}, len(known))
	for nodeName, node := range known {
		node.mu.Lock()
		connected := node.stream != nil
		node.mu.Unlock()
		inCluster := false
		if snapshot != nil {
			_, inCluster = snapshot.nodes.Get(nodeName)
		}
		if !connected && !inCluster {
			delete(s.nodes, nodeName) // gone for good: forget it
			continue
		}
		names[nodeName] = struct{}{}
	}
	s.mu.Unlock()

	var newest uint64
	if snapshot != nil {
		newest = snapshot.revision
		for nodeName := range snapshot.nodes.All() {
			names[nodeName] = struct{}{}
		}
	}
	states := make([]*calculatorv1.NodeState, 0, len(names))
	for _, nodeName := range slices.Sorted(maps.Keys(names)) {
		node := known[nodeName]
		if node == nil {
			node = &nodeState{}
		}
		states = append(states, node.proto(nodeName, newest))
	}
	return states
}
