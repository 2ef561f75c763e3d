// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that is wrapped
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// bareAgent is the wire side of an agent and nothing more, so that a thousand
// of them fit into one process and cost less than the calculator they test.
type bareAgent struct {
	conn     *grpc.ClientConn
	stream   grpc.ClientStream
	cancel   context.CancelFunc
	updates  int
	received int64
	refused  int
}

// everything is what present agents announce.
var everything = func() (list []*dataplanev1.TypeSupport) {
	for number := range dataplanev1.ResourceType_name {
		if number != 0 {
			list = append(list, &dataplanev1.TypeSupport{Type: dataplanev1.ResourceType(number), Schema: 1})
		}
	}
	return list
}()

// message is a SyncResponse of which an update is counted, not decoded.
type message struct {
	update bool
	size   int
	dataplanev1.SyncResponse
}

// bareCodec reads messages into a message.
type bareCodec struct{ encoding.CodecV2 }

func (c bareCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m := v.(*message)
	m.size = data.Len()
	head := make([]byte, min(m.size, 10))
	if _, err := data.Reader().Read(head); err != nil {
		return err
	}
	number, _, n := protowire.ConsumeTag(head)
	if n < 0 {
		return protowire.ParseError(n)
	}
	if m.update = number == updateField; m.update {
		return nil
	}
	return proto.Unmarshal(data.Materialize(), &m.SyncResponse)
}

var updateField = (&dataplanev1.SyncResponse{}).ProtoReflect().Descriptor().Fields().ByName("update").Number()

// connect opens a stream until it is let in, as agents do: no sooner than the
// calculator says, and by chance later.
func (a *bareAgent) connect(ctx context.Context, f *fixture, c *calculator, hello *dataplanev1.Hello) error {
	for {
		err := a.try(ctx, f, c, hello)
		delay := errorinfo.RetryDelay(err)
		if status.Code(err) != codes.Unavailable || delay == 0 || ctx.Err() != nil {
			return err
		}
		a.close()
		a.refused++
		pause(ctx, delay+rand.N(delay))
	}
}

// try opens a stream, takes the first batch and acknowledges it.
func (a *bareAgent) try(ctx context.Context, f *fixture, c *calculator, hello *dataplanev1.Hello) error {
	certificate, err := f.certs.of(hello.GetNodeName())
	if err != nil {
		return err
	}
	creds := credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	a.conn, err = grpc.NewClient("passthrough:///"+fmt.Sprintf("127.0.0.1:%d", c.port()), grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bareCodec{encoding.GetCodecV2("proto")})),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Minute}), // a thousand handshakes on few cores
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return f.Control.DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		return err
	}
	var streaming context.Context
	streaming, a.cancel = context.WithCancel(ctx)
	a.stream, err = a.conn.NewStream(streaming, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, dataplanev1.SyncService_Sync_FullMethodName)
	if err != nil {
		return fmt.Errorf("%s: %w", hello.GetNodeName(), err)
	}
	if err := a.stream.SendMsg(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	for {
		m, err := a.receive()
		if err != nil {
			return fmt.Errorf("%s: %w", hello.GetNodeName(), err)
		}
		if commit := m.GetCommit(); commit.GetInSync() {
			return a.stream.SendMsg(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Ack{
				Ack: &dataplanev1.Ack{ProgrammedRevision: commit.GetRevision()}}})
		}
	}
}

func (a *bareAgent) receive() (*message, error) {
	m := &message{}
	if err := a.stream.RecvMsg(m); err != nil {
		return nil, err
	}
	if m.update {
		a.updates++
	}
	a.received += int64(m.size)
	return m, nil
}

// awaitDrain reads until the agent is told to go. A stubborn one stays until
// the stream ends.
func (a *bareAgent) awaitDrain(stubborn bool) error {
	told := false
	for {
		m, err := a.receive()
		switch {
		case err != nil && !told:
			return fmt.Errorf("cut off without having been told to go: %w", err)
		case err != nil:
			return nil
		case m.GetDrain().GetCause() == dataplanev1.DrainCause_DRAIN_CAUSE_STOPPING:
			if told = true; !stubborn {
				a.close()
				return nil
			}
		}
	}
}

func (a *bareAgent) close() {
	if a.cancel != nil {
		a.cancel()
	}
	if a.conn != nil {
		a.conn.Close()
	}
}
