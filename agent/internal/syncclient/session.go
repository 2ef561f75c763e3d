// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/proto/digest"
	"github.com/millrace-project/millrace/proto/epoch"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Reasons why the agent ends a stream.
const (
	reasonPosition = "POSITION_BACKWARDS"
	reasonEpoch    = "EPOCH_BACKWARDS"
	reasonDigest   = "DIGEST_MISMATCH"
	reasonProtocol = "PROTOCOL"
	reasonSilent   = "NO_WELCOME"
	// reasonUnknown is of messages, which end nothing.
	reasonUnknown = "UNKNOWN_MESSAGE"
)

// session is one stream.
type session struct {
	*Client
	target Target
	call   grpc.BidiStreamingClient[dataplanev1.SyncRequest, dataplanev1.SyncResponse]
	cancel context.CancelFunc
	outbox *outbox

	welcome  *dataplanev1.Welcome
	position map[string]uint64
	batch    *held.Batch
	inSync   bool
}

var _ applier.Stream = (*session)(nil)

// Acknowledge implements applier.Stream.
func (s *session) Acknowledge(ack *dataplanev1.Ack) { s.outbox.setAck(ack) }

// Report implements applier.Stream.
func (s *session) Report(r *dataplanev1.Report) { s.outbox.setReport(r) }

// Mismatch implements applier.Stream. The next stream's digests show what is
// missing.
func (s *session) Mismatch() {
	s.outbox.fail(refuse(reasonDigest, "what is held differs from what the calculator sent"))
	s.cancel()
}

func (s *session) run(ctx context.Context) error {
	if err := s.applier.Attach(ctx, s); err != nil {
		return err
	}
	// Held cannot change from here on but by this stream.
	meta := s.store.Meta()
	s.position = meta.Position
	if err := s.call.Send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Hello{Hello: s.hello()}}); err != nil {
		return s.failure(err)
	}
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		s.send(ctx)
	}()
	defer func() {
		s.cancel()
		<-sender
	}()
	silence := time.AfterFunc(welcomeTimeout, func() {
		s.outbox.fail(refuse(reasonSilent, "the calculator said nothing for %v", welcomeTimeout))
		s.cancel()
	})
	defer silence.Stop()
	for {
		response, err := s.call.Recv()
		if err != nil {
			return s.failure(err)
		}
		silence.Stop()
		if err := s.handle(response); err != nil {
			return err
		}
	}
}

// failure returns why the stream failed: the reason of our own, if there is
// one, rather than that it was cancelled.
func (s *session) failure(err error) error {
	if own := s.outbox.failure(); own != nil && (isEnd(err) || errors.Is(err, io.EOF)) {
		return own
	}
	if errors.Is(err, io.EOF) {
		// Send says no more than that the stream ended; Recv knows why.
		if _, why := s.call.Recv(); why != nil && !errors.Is(why, io.EOF) {
			return why
		}
		return errors.New("the calculator ended the stream")
	}
	return err
}

// send sends what the outbox has until the stream ends.
func (s *session) send(ctx context.Context) {
	for {
		request, ok := s.outbox.next(ctx)
		if !ok {
			return
		}
		if err := s.call.Send(request); err != nil {
			return // Recv fails too, and tells why
		}
	}
}

func (s *session) handle(response *dataplanev1.SyncResponse) error {
	if s.welcome == nil {
		welcome := response.GetWelcome()
		if welcome == nil {
			return refuse(reasonProtocol, "the first message of the calculator is %T, not welcome", response.GetMessage())
		}
		return s.greet(welcome)
	}
	switch m := response.GetMessage().(type) {
	case *dataplanev1.SyncResponse_HeldRequest:
		return s.answer(m.HeldRequest)
	case *dataplanev1.SyncResponse_Update:
		return s.update(m.Update)
	case *dataplanev1.SyncResponse_Commit:
		return s.commit(m.Commit)
	case *dataplanev1.SyncResponse_Drain:
		s.log.Info("calculator asks to go elsewhere", zap.String("calculator", s.target.Address),
			zap.String("why", m.Drain.GetReason()))
		return &drained{reason: m.Drain.GetReason(), anew: m.Drain.GetCause() == dataplanev1.DrainCause_DRAIN_CAUSE_CONNECTION_AGE}
	case *dataplanev1.SyncResponse_Notice:
		s.notice(m.Notice)
		return nil
	case *dataplanev1.SyncResponse_Welcome:
		return refuse(reasonProtocol, "a second welcome")
	default:
		s.unknown(response)
		return nil
	}
}

func (s *session) greet(w *dataplanev1.Welcome) error {
	if n := w.GetBuckets(); n == 0 || n > digest.Count || n&(n-1) != 0 {
		return refuse(reasonProtocol, "the calculator has %d buckets; a power of two up to %d is understood", n, digest.Count)
	}
	known := s.store.Meta().Epoch
	if epoch.Compare(known, w.GetEpoch()) == epoch.Ahead {
		// Positions would mean nothing, and what is long gone could come back.
		return refuse(reasonEpoch, "the calculator goes back: epoch %q after %q", w.GetEpoch(), known)
	}
	s.welcome = w
	if known != w.GetEpoch() {
		// The calculator judged by our hello that we belong to its cluster: the
		// cluster's state was set back, and positions with it.
		s.position = nil
	}
	s.metrics.Connects.Inc()
	s.metrics.Connected.Set(1)
	s.Client.update(func(st *Status) {
		st.Connected, st.Address, st.CalculatorID = true, s.target.Address, w.GetCalculatorId()
		st.Disconnected = time.Time{}
		st.ConnectTime, st.Epoch, st.InSync, st.Received = time.Now(), w.GetEpoch(), false, 0
		st.Connects++
	})
	s.log.Info("connected", zap.String("calculator", s.target.Address), zap.String("id", w.GetCalculatorId()),
		zap.String("version", w.GetCalculatorVersion()), zap.String("epoch", w.GetEpoch()))
	return nil
}

// answer tells what is held in the buckets that the calculator asks for.
func (s *session) answer(request *dataplanev1.HeldRequest) error {
	count := s.welcome.GetBuckets()
	for _, bucket := range request.GetBuckets() {
		if bucket >= count {
			return refuse(reasonProtocol, "the calculator asks for bucket %d of %d", bucket, count)
		}
	}
	byBucket := s.store.Buckets(request.GetBuckets(), count)
	for _, bucket := range request.GetBuckets() {
		s.outbox.add(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Held{Held: &dataplanev1.Held{
			Bucket: bucket, Resources: byBucket[bucket],
		}}})
	}
	return nil
}

// update keeps a part of a batch. Resources become bytes at once: a batch may
// be all there is, and decoded messages take ten times the room.
func (s *session) update(u *dataplanev1.Update) error {
	for _, name := range u.GetRemovals() {
		s.batch.Remove(held.NameOf(name))
	}
	for _, r := range u.GetUpserts() {
		name, entry, err := held.FromProto(r)
		if err != nil {
			return err
		}
		s.batch.Upsert(name, entry)
	}
	return nil
}

func (s *session) commit(c *dataplanev1.Commit) error {
	position := c.GetPosition().GetResourceVersions()
	for kind, version := range position {
		if had := s.position[kind]; version < had {
			s.metrics.RefusedBatches.WithLabelValues("position").Inc()
			return refuse(reasonPosition, "the calculator goes back: %s %d after %d", kind, version, had)
		}
	}
	merged := maps.Clone(s.position)
	if merged == nil {
		merged = make(map[string]uint64, len(position))
	}
	maps.Copy(merged, position)
	s.position = merged
	s.inSync = s.inSync || c.GetInSync()
	batch := s.batch
	s.batch = held.NewBatch()
	batch.Meta = held.Meta{Epoch: s.welcome.GetEpoch(), Position: merged, InSync: s.inSync}
	commit := applier.Commit{Revision: c.GetRevision(), Digest: c.GetDigest(), InSync: c.GetInSync()}
	if c.GetTriggerTime() != nil {
		commit.Trigger = c.GetTriggerTime().AsTime()
	}
	s.metrics.ReceivedRevision.Set(float64(c.GetRevision()))
	if s.inSync {
		s.metrics.InSync.Set(1)
	}
	s.Client.update(func(st *Status) {
		st.Received, st.Position = c.GetRevision(), merged
		st.InSync = s.inSync
	})
	s.applier.Submit(batch, commit)
	return nil
}

// notice takes what only the calculator can see.
func (s *session) notice(n *dataplanev1.Notice) {
	s.log.Warn("the calculator has noticed a problem", zap.String("calculator", s.target.Address),
		zap.String("reason", n.GetReason()), zap.String("message", n.GetMessage()))
	if n.GetReason() == reasonDuplicate {
		s.noteDuplicate(n.GetMessage())
	}
}

// unknown notes a message of a type that this agent does not know. Everything
// else of the stream goes on.
func (s *session) unknown(response *dataplanev1.SyncResponse) {
	what := "SyncResponse without a message"
	if fields := response.ProtoReflect().GetUnknown(); len(fields) > 0 {
		if number, _, n := protowire.ConsumeField(fields); n >= 0 {
			what = fmt.Sprintf("SyncResponse field %d", number)
		}
	}
	s.metrics.UnknownMessages.Inc()
	s.log.Warn("message of an unknown type", zap.String("message", what), zap.String("calculator", s.target.Address))
	s.applier.AddError(dataplane.NewError(held.Name{Key: what}, reasonUnknown, "",
		fmt.Sprintf("the calculator sent a %s, which this agent, version %s, does not know; it is left out",
			what, s.options.Version)))
}
