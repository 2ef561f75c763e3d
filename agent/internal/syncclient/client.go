// SPDX-License-Identifier: Apache-2.0

// Package syncclient keeps a stream open to one of the calculators and brings
// what comes by it to the applier.
package syncclient

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

const (
	// maxMessage is the largest message taken from a calculator.
	maxMessage = 64 << 20
	// pingTime is how long a stream may be silent before the calculator is
	// asked whether it is there, and pingTimeout how long it may take to answer:
	// a node that lost its calculator to a dead machine notices within both,
	// 15 s.
	pingTime    = 10 * time.Second
	pingTimeout = 5 * time.Second
	// connectTimeout is how long an address that does not answer is waited for
	// until the next one is tried.
	connectTimeout = 5 * time.Second
	// welcomeTimeout is how long a calculator may take to let the agent in: more
	// than it lets agents wait for their turn.
	welcomeTimeout = 45 * time.Second
)

// Applier takes what comes by the stream.
type Applier interface {
	Attach(ctx context.Context, s applier.Stream) error
	Detach()
	Submit(*held.Batch, applier.Commit)
	AddError(*dataplanev1.ResourceError)
}

// Target is a calculator's address and how to dial it.
type Target struct {
	// Address as the user gave it.
	Address string
	// Dial is the address in the form that gRPC takes.
	Dial        string
	Credentials credentials.TransportCredentials
}

// Discovery knows where calculators are.
type Discovery interface {
	// Addresses lists where one may be.
	Addresses() []string
	// Target tells how to dial one of them, by what is known at the moment.
	Target(address string) (Target, error)
	// Changed has an entry when there may be others than before.
	Changed() <-chan struct{}
}

// Options are a client's settings.
type Options struct {
	Node      string
	Version   string
	Discovery Discovery
	// Types to announce; all that this agent understands if empty.
	Types []dataplanev1.ResourceType
	// Token is shown to calculators that are dialled with TLS. It may be nil.
	Token credentials.PerRPCCredentials
	// Backoff bounds the waits between rounds over all targets. Zero stands for
	// DefaultBackoff.
	Backoff Backoff
}

// Status is how the stream is.
type Status struct {
	Address      string
	CalculatorID string
	Connected    bool
	InSync       bool
	Received     uint64
	LastError    string
	ConnectTime  time.Time
	Connects     uint64
	Position     map[string]uint64
	Epoch        string
	// Disconnected is since when no calculator answers; zero while one does.
	Disconnected time.Time
	// Problems are what is wrong with the streams, but for that there is none.
	Problems []string
}

// Client keeps the stream.
type Client struct {
	options Options
	store   *held.Store
	applier Applier
	metrics *metrics.Metrics
	log     *zap.Logger

	// instance tells this agent from another one with the same node name.
	instance string

	mu        sync.Mutex
	status    Status
	duplicate duplicate
	conn      *grpc.ClientConn // of the stream, nil without one
}

// New returns a client.
func New(options Options, store *held.Store, a Applier, m *metrics.Metrics, log *zap.Logger) *Client {
	if options.Backoff == (Backoff{}) {
		options.Backoff = DefaultBackoff
	}
	return &Client{options: options, store: store, applier: a, metrics: m, log: log,
		instance: rand.Text(), status: Status{Disconnected: time.Now()}}
}

// Status returns how the stream is.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Problems = c.problems(time.Now())
	meta := c.store.Meta()
	if s.Epoch == "" {
		s.Epoch = meta.Epoch
	}
	if s.Position == nil {
		s.Position = meta.Position
	}
	return s
}

func (c *Client) update(f func(*Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.status)
}

// drained ends a stream whose calculator asked the agent to leave.
type drained struct {
	reason string
	// anew: any calculator will do, this one included.
	anew bool
}

func (d *drained) Error() string { return "the calculator asks to connect anew: " + d.reason }

func (c *Client) ended(address string, err error) {
	c.applier.Detach()
	c.metrics.Connected.Set(0)
	c.metrics.InSync.Set(0)
	reason := Reason(err)
	c.metrics.StreamEnds.WithLabelValues(reason).Inc()
	c.noteRefusal(reason, err)
	c.update(func(s *Status) {
		if s.Connected {
			s.Disconnected = time.Now()
		}
		s.Connected, s.InSync, s.Address, s.CalculatorID = false, false, "", ""
		s.LastError = err.Error()
		if address != "" {
			s.LastError = address + ": " + s.LastError
		}
	})
	c.log.Info("stream ended", zap.String("calculator", address), zap.String("reason", reason), zap.Error(err))
}

// Reason returns why a stream ended in one word: the reason that the
// calculator's error carries, or the error's code.
func Reason(err error) string {
	if drain := (*drained)(nil); errors.As(err, &drain) {
		return "DRAIN"
	}
	var refused *refusal
	if errors.As(err, &refused) {
		return refused.reason
	}
	if reason := errorinfo.Reason(err); reason != "" {
		return reason
	}
	return strings.ToUpper(status.Code(err).String())
}

// refusal is why the agent itself ended a stream.
type refusal struct{ reason, message string }

func (r *refusal) Error() string { return r.message }

func refuse(reason, format string, args ...any) error {
	return &refusal{reason: reason, message: fmt.Sprintf(format, args...)}
}

// stream opens a stream and follows it to its end.
func (c *Client) stream(ctx context.Context, target Target) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(target.Credentials),
		grpc.WithUserAgent("millrace-agent/" + c.options.Version),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingTime, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		// Trying again is Run's: it tries another calculator first.
		grpc.WithDisableRetry(),
	}
	if c.options.Token != nil && target.Credentials.Info().SecurityProtocol == "tls" {
		options = append(options, grpc.WithPerRPCCredentials(c.options.Token))
	}
	conn, err := grpc.NewClient(target.Dial, options...)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is left to lose
	defer c.setConnection(nil)
	c.setConnection(conn)
	call, err := dataplanev1.NewSyncServiceClient(conn).Sync(ctx)
	if err != nil {
		return err
	}
	s := &session{Client: c, target: target, call: call, cancel: cancel, outbox: newOutbox(), batch: held.NewBatch()}
	return s.run(ctx)
}

func (c *Client) setConnection(conn *grpc.ClientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
}

// Connection returns the connection to the calculator that the agent has a
// stream with; false if there is none.
func (c *Client) Connection() (grpc.ClientConnInterface, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn, c.conn != nil && c.status.Connected
}

// hello introduces this agent and what it holds.
func (c *Client) hello() *dataplanev1.Hello {
	meta := c.store.Meta()
	hello := &dataplanev1.Hello{
		NodeName:      c.options.Node,
		AgentVersion:  c.options.Version,
		Types:         c.options.types(),
		Epoch:         meta.Epoch,
		DataplaneMode: dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
		InstanceId:    c.instance,
	}
	if len(meta.Position) > 0 {
		hello.Position = &dataplanev1.Position{ResourceVersions: meta.Position}
	}
	if len(c.store.Counts()) > 0 {
		digests := c.store.Digests()
		hello.BucketDigests = digests.Digests()
	}
	return hello
}

// supported are the types that this agent understands, with the schema numbers
// of the resource.proto it was built from.
var supported = func() []*dataplanev1.TypeSupport {
	var list []*dataplanev1.TypeSupport
	for _, t := range []dataplanev1.ResourceType{
		dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG,
		dataplanev1.ResourceType_RESOURCE_TYPE_NODE,
		dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT,
		dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS,
	} {
		list = append(list, &dataplanev1.TypeSupport{Type: t, Schema: 1})
	}
	return list
}()

// types are the announced ones.
func (o Options) types() []*dataplanev1.TypeSupport {
	if len(o.Types) == 0 {
		return supported
	}
	var list []*dataplanev1.TypeSupport
	for _, s := range supported {
		if slices.Contains(o.Types, s.GetType()) {
			list = append(list, s)
		}
	}
	return list
}

// isEnd tells whether the error is an orderly end of a stream.
func isEnd(err error) bool { return status.Code(err) == codes.Canceled }
