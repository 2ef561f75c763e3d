// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace-project/millrace/proto/access"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// stream is one node's stream. One goroutine receives, another sends.
type stream struct {
	service *Service
	server  grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]
	peer    string
	// claimed is the name the agent gave, for the log.
	claimed atomic.Value

	hello    chan *dataplanev1.Hello
	held     chan *dataplanev1.Held
	drain    chan string
	notices  chan *dataplanev1.Notice
	replaced chan struct{}
	// replacedBy is the peer of the stream that took over; set before replaced
	// is closed.
	replacedBy string

	// node is the name of the node; set before the stream is attached.
	node  string
	state atomic.Pointer[nodeState]
	// report is what the agent said last of its node. It may say so right after its
	// hello, before the stream is attached, and does not repeat it.
	report atomic.Pointer[dataplanev1.Report]
	// committed is the revision of the last commit sent.
	committed atomic.Uint64
	// sending is when the message that is on its way was handed over, in
	// nanoseconds since 1970; 0 if none is.
	sending atomic.Int64
	// types are those the agent has announced; set before anything is sent.
	types typeSet
	// foreign are announced types that this calculator does not publish; kept is
	// the digest of what the agent holds of them.
	foreign typeSet
	kept    uint64
}

func newStream(service *Service, server grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]) *stream {
	st := &stream{
		service:  service,
		server:   server,
		hello:    make(chan *dataplanev1.Hello, 1),
		held:     make(chan *dataplanev1.Held),
		drain:    make(chan string, 1),
		notices:  make(chan *dataplanev1.Notice, 1),
		replaced: make(chan struct{}),
	}
	st.claimed.Store("")
	if p, ok := peer.FromContext(server.Context()); ok {
		st.peer = p.Addr.String()
	}
	return st
}

// receive handles the agent's messages until the stream ends.
func (st *stream) receive() error {
	greeted := false
	for {
		request, err := st.server.Recv()
		if err != nil {
			return err
		}
		switch message := request.GetMessage().(type) {
		case *dataplanev1.SyncRequest_Hello:
			if greeted {
				return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field hello: a stream has one hello, this is another")
			}
			greeted = true
			st.claimed.Store(message.Hello.GetNodeName())
			st.hello <- message.Hello
			continue
		case *dataplanev1.SyncRequest_Held:
			select {
			case st.held <- message.Held:
			case <-st.server.Context().Done():
				return nil
			case <-time.After(st.service.Answer):
				return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field held: bucket %d was not asked for", message.Held.GetBucket())
			}
		case *dataplanev1.SyncRequest_Ack:
			if err := st.handleAck(message.Ack); err != nil {
				return err
			}
		case *dataplanev1.SyncRequest_Report:
			st.report.Store(message.Report)
		default:
			return st.unknownMessage(request)
		}
		if !greeted {
			return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "the first message must be hello, this is %T", request.GetMessage())
		}
	}
}

// handleAck records what the kernel of the node holds.
func (st *stream) handleAck(ack *dataplanev1.Ack) error {
	committed := st.committed.Load()
	if revision := ack.GetProgrammedRevision(); revision > committed {
		return domain.Errorf(codes.InvalidArgument, ReasonMalformed,
			"field ack.programmed_revision: %d was never sent on this stream, the last is %d", revision, committed)
	}
	node := st.state.Load()
	if node == nil {
		return nil // nothing has been sent: the ack of revision 0 tells nothing
	}
	st.service.metrics.acks.Inc()
	for _, duration := range node.noteAck(ack, time.Now()) {
		st.service.metrics.programming.Observe(duration.Seconds())
	}
	for _, e := range ack.GetErrors() {
		st.service.Log.Debug("node could not program a resource", zap.String("node", st.node),
			zap.Stringer("type", e.GetName().GetType()), zap.String("key", e.GetName().GetKey()),
			zap.String("field", e.GetField()), zap.String("reason", e.GetReason()), zap.String("message", e.GetMessage()))
	}
	return nil
}

// unknownMessage names what arrived instead of a message that is known.
func (st *stream) unknownMessage(request *dataplanev1.SyncRequest) error {
	unknown := request.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field message: the request is empty")
	}
	number, _, length := protowire.ConsumeField(unknown)
	if length < 0 {
		return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field message: %v", protowire.ParseError(length))
	}
	return domain.Errorf(codes.InvalidArgument, ReasonUnknownMessage,
		"field message: a SyncRequest of type %d is unknown to this calculator, version %s", number, st.service.Version)
}

// send greets the agent, brings it to the present and keeps it there.
func (st *stream) send() error {
	hello, err := st.awaitHello()
	if err != nil {
		return err
	}
	now, err := st.admit(hello)
	if err != nil {
		return err
	}
	leave, err := st.awaitTurn(hello, &now)
	if err != nil {
		return err
	}
	defer leave()
	node, err := st.service.attach(st, hello)
	if err != nil {
		return err
	}
	st.state.Store(node)
	defer detach(st)
	caller, _ := access.CallerOf(st.context())
	st.service.Log.Info("stream opened", zap.String("node", st.node), zap.String("peer", st.peer),
		zap.Stringer("caller", caller), zap.String("agentVersion", hello.GetAgentVersion()))

	if err := st.welcome(); err != nil {
		return err
	}
	floor := st.floor(hello)
	if err := st.bringUp(node, &now, hello, floor); err != nil {
		return err
	}
	leave()
	return st.follow(node, &now, floor)
}

func (st *stream) awaitHello() (*dataplanev1.Hello, error) {
	timeout := time.NewTimer(st.service.Answer)
	defer timeout.Stop()
	select {
	case hello := <-st.hello:
		return hello, nil
	case <-timeout.C:
		return nil, domain.Errorf(codes.InvalidArgument, ReasonMalformed, "no hello came in %v", st.service.Answer)
	case <-st.server.Context().Done():
		return nil, st.server.Context().Err()
	}
}

// follow sends what changes for as long as the stream lasts.
func (st *stream) follow(node *nodeState, at *view, floor Position) error {
	var old, left <-chan time.Time // the stream is old; its agent has not left
	var due time.Time              // of the next of the two
	if age := st.service.MaxAge; age > 0 {
		// Streams opened together must not all end together.
		wait := age*3/4 + rand.N(age/2+1)
		due = time.Now().Add(wait)
		timer := time.NewTimer(wait)
		defer timer.Stop()
		old = timer.C
	}
	// asked tells that there is something to do besides to send what changes. It
	// comes first: where changes never end, a slow stream is never up to date.
	asked := func() bool {
		return len(st.drain) > 0 || len(st.notices) > 0 || !due.IsZero() && !time.Now().Before(due)
	}
	for {
		snapshot := st.service.publisher.current.Load()
		if snapshot.revision == at.revision || asked() {
			select {
			case <-snapshot.superseded:
				continue
			case reason := <-st.drain:
				if err := st.sendDrain(reason, dataplanev1.DrainCause_DRAIN_CAUSE_STOPPING); err != nil {
					return err
				}
				continue
			case <-old:
				if err := st.sendDrain("the stream is old", dataplanev1.DrainCause_DRAIN_CAUSE_CONNECTION_AGE); err != nil {
					return err
				}
				due = time.Now().Add(st.service.AgeGrace)
				timer := time.NewTimer(st.service.AgeGrace)
				defer timer.Stop()
				left = timer.C
				continue
			case <-left:
				return domain.Errorf(codes.Unavailable, ReasonConnectionAge, "the agent was asked to connect anew and did not in %v", st.service.AgeGrace)
			case notice := <-st.notices:
				if err := st.sendNotice(notice); err != nil {
					return err
				}
				continue
			case <-st.server.Context().Done():
				return st.server.Context().Err()
			}
		}
		now, ok := snapshot.view(st.node)
		if !ok {
			return unknownNode(st.node)
		}
		content, shared, err := snapshot.contentSince(at, &now, st.types)
		if err != nil {
			return fmt.Errorf("encoding revision %d: %w", snapshot.revision, err)
		}
		if content.empty() {
			// Nothing for this node: its agent need not hear of it.
			node.noteDelivered(snapshot.revision)
			*at = now
			continue
		}
		kind, trigger := batchShared, snapshot.trigger
		if !shared {
			kind, trigger = batchCatchUp, st.service.publisher.oldestTrigger(at.revision, snapshot.revision)
		}
		// An agent that knew more than this calculator has published (see
		// admit) must not be told less.
		var commit *frame
		if shared && len(snapshot.position.behind(floor)) == 0 && !unwatched(snapshot.position, floor) {
			commit, err = snapshot.sharedCommit()
		} else {
			commit, err = encodeCommit(snapshot.revision, snapshot.position.Merge(floor), trigger, st.sum(&now))
		}
		if err != nil {
			return fmt.Errorf("encoding the commit of revision %d: %w", snapshot.revision, err)
		}
		if err := st.sendBatch(node, kind, content, commit, snapshot.revision, trigger); err != nil {
			return err
		}
		*at = now
	}
}

// unwatched tells that floor has kinds that are not in position.
func unwatched(position, floor Position) bool {
	for kind := range floor {
		if _, ok := position[kind]; !ok {
			return true
		}
	}
	return false
}

// sendBatch sends the messages of a batch and its commit.
func (st *stream) sendBatch(node *nodeState, kind string, content content, commit *frame, revision uint64, trigger time.Time) error {
	m := st.service.metrics
	err := content.each(func(f *frame) error {
		if err := st.sendFrame(f); err != nil {
			return err
		}
		if f.removal {
			m.resources.WithLabelValues("removal").Add(float64(f.count))
		} else {
			m.resources.WithLabelValues("upsert").Add(float64(f.count))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("sending revision %d: %w", revision, err)
	}
	// Recorded first: the answer may come before the send returns.
	st.committed.Store(revision)
	node.noteSent(revision, trigger)
	if err := st.sendFrame(commit); err != nil {
		return err
	}
	m.batches.WithLabelValues(kind).Inc()
	return nil
}

func (st *stream) sendFrame(f *frame) error {
	st.sending.Store(time.Now().UnixNano())
	if err := st.server.SendMsg(f); err != nil {
		return err
	}
	st.sending.Store(0)
	st.service.metrics.messages.Inc()
	st.service.metrics.bytes.Add(float64(len(f.data)))
	return nil
}

func (st *stream) sendDrain(reason string, cause dataplanev1.DrainCause) error {
	f, err := encodeResponse(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Drain{
		Drain: &dataplanev1.Drain{Reason: reason, Cause: cause}}})
	if err != nil {
		return err
	}
	return st.sendFrame(f)
}

func (st *stream) sendNotice(notice *dataplanev1.Notice) error {
	f, err := encodeResponse(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Notice{Notice: notice}})
	if err != nil {
		return err
	}
	return st.sendFrame(f)
}

// context ends when the stream does.
func (st *stream) context() context.Context { return st.server.Context() }
