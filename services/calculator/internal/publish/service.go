// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Options configures a Service.
type Options struct {
	// CalculatorID identifies the process.
	CalculatorID string
	// Version is shown to agents.
	Version string
	// Epoch returns the identity of the cluster; it is asked once the source
	// has been read in whole.
	Epoch func() string
	// Ahead is called when an agent comes that knows more than this calculator,
	// with its node, epoch and position, so that the source finds out how far
	// it really is. It does not wait; what it returns is added to a refusal. It
	// may be nil.
	Ahead func(node, epoch string, position map[string]uint64) string
	// Pod returns a pod, by "namespace/name", that is on a node and is no endpoint.
	// It may be nil: nothing is said of such pods then.
	Pod func(key string) (PodState, bool)
	// Schemas has, for every type that is published, the lowest schema number
	// of which an agent understands it.
	Schemas map[dataplanev1.ResourceType]uint32
	// Patience is how long a stream waits for the calculator to have synced or
	// to have reached the agent's position before it is refused. Default 5 s.
	Patience time.Duration
	// Answer is how long an agent may take to answer where the protocol waits
	// for it. Default 30 s.
	Answer time.Duration
	// JoinLimit is how many agents are brought up at a time; those that hold
	// what they should need no turn. Default 32.
	JoinLimit int
	// JoinWait is how long an agent waits for its turn before it is refused.
	// Default 10 s.
	JoinWait time.Duration
	// StallLimit is how long an agent may leave a message unread. Default 1 min.
	StallLimit time.Duration
	// MaxAge is how long a stream lasts before its agent is asked to connect
	// anew, give or take a quarter; 0 for ever. AgeGrace is how long the agent
	// may take to do so. Default 30 s.
	MaxAge, AgeGrace time.Duration
	// Log gets what happens to streams.
	Log *zap.Logger
	// Registry gets the metrics.
	Registry prometheus.Registerer
}

// Service implements SyncService. The server it is registered with must use
// Codec.
type Service struct {
	dataplanev1.UnimplementedSyncServiceServer
	Options
	publisher *Publisher
	metrics   *metrics
	admission *admission
	joins     joins

	mu       sync.Mutex
	nodes    map[string]*nodeState
	streams  map[*stream]struct{}
	idle     chan struct{} // closed while draining and no stream is left
	draining bool
	drained  chan struct{} // closed when draining begins
}

// joinLease is how long an agent that is brought up keeps others from their
// turn.
const joinLease = 10 * time.Second

// NewService returns a service that streams what the publisher publishes.
func NewService(publisher *Publisher, options Options) *Service {
	if options.Patience == 0 {
		options.Patience = 5 * time.Second
	}
	if options.Answer == 0 {
		options.Answer = 30 * time.Second
	}
	if options.JoinLimit == 0 {
		options.JoinLimit = 32
	}
	if options.JoinWait == 0 {
		options.JoinWait = 10 * time.Second
	}
	if options.StallLimit == 0 {
		options.StallLimit = time.Minute
	}
	if options.AgeGrace == 0 {
		options.AgeGrace = 30 * time.Second
	}
	s := &Service{
		Options:   options,
		publisher: publisher,
		nodes:     map[string]*nodeState{},
		streams:   map[*stream]struct{}{},
		idle:      make(chan struct{}),
		drained:   make(chan struct{}),
		admission: newAdmission(options.JoinLimit, joinLease, options.JoinWait),
	}
	s.metrics = newMetrics(options.Registry, s)
	return s
}

// Sync implements SyncService.
func (s *Service) Sync(server grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]) error {
	st := newStream(s, server)
	if err := s.register(st); err != nil {
		return s.ended(st, err)
	}
	defer s.unregister(st)
	s.metrics.opened.Inc()
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()

	// A send blocks for as long as the agent does not read. It has a goroutine
	// of its own, so that the stream can end meanwhile: returning from here
	// ends the context, and with it a blocked send and receive.
	done := make(chan error, 2)
	go func() { done <- st.receive() }()
	go func() { done <- st.send() }()
	var err error
	select {
	case err = <-done:
	case <-st.replaced:
		err = domain.Errorf(codes.Aborted, ReasonReplaced, "a newer stream of node %q, of the agent at %s, replaces this one", st.node, st.replacedBy)
	case err = <-st.stalled():
	case <-server.Context().Done():
		err = status.FromContextError(server.Context().Err()).Err()
	}
	return s.ended(st, err)
}

// ended counts and logs the end of a stream.
func (s *Service) ended(st *stream, err error) error {
	if errors.Is(err, io.EOF) {
		err = nil // the agent has closed its side: a proper end
	}
	reason := errorinfo.Reason(err)
	if reason == "" {
		reason = status.Code(err).String()
	}
	s.metrics.ended.WithLabelValues(reason).Inc()
	if reason == ReasonMalformed || reason == ReasonUnknownMessage {
		s.noteViolation(st.claimed.Load().(string), err)
	}
	fields := []zap.Field{zap.String("node", st.claimed.Load().(string)), zap.String("peer", st.peer), zap.String("reason", reason)}
	switch status.Code(err) {
	case codes.OK, codes.Canceled:
		s.Log.Info("stream ended", fields...)
	default:
		s.Log.Warn("stream ended", append(fields, zap.Error(err))...)
	}
	return err
}

func (s *Service) register(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return errDraining()
	}
	s.streams[st] = struct{}{}
	return nil
}

func (s *Service) unregister(st *stream) {
	detach(st)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if s.draining && len(s.streams) == 0 {
		close(s.idle)
	}
}

// drainPace is the most that streams are spaced when draining: few streams need
// not take the whole time.
const drainPace = 20 * time.Millisecond

// Drain refuses new streams, tells the present ones to go elsewhere, evenly
// spread over at most the time given so that other calculators are not
// stormed, and returns when all have gone, when those told last have had the
// time of grace, or when the context ends.
func (s *Service) Drain(ctx context.Context, reason string, spread, grace time.Duration) {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		close(s.drained)
	}
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	if len(streams) == 0 {
		return
	}
	s.Log.Info("sending agents elsewhere", zap.Int("streams", len(streams)))
	pace := time.NewTicker(max(min(spread/time.Duration(len(streams)), drainPace), time.Microsecond))
	defer pace.Stop()
	for _, st := range streams {
		st.drain <- reason // has room for the one reason it ever gets
		select {
		case <-pace.C:
		case <-s.idle:
			return
		case <-ctx.Done():
			return
		}
	}
	timeout := time.NewTimer(grace)
	defer timeout.Stop()
	select {
	case <-s.idle:
	case <-timeout.C:
	case <-ctx.Done():
	}
}
