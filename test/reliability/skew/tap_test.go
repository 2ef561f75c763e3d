// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/test/testbed"
)

// rawCodec leaves messages as the bytes they are: what stands in between must
// not need to understand them.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(message any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*message.(*[]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, message any) error {
	*message.(*[]byte) = data.Materialize()
	return nil
}

const maxMessage = 64 << 20

// syncMethod is what an agent calls at a calculator.
const syncMethod = "/millrace.dataplane.v1.SyncService/Sync"

var syncDesc = grpc.StreamDesc{StreamName: "Sync", ServerStreams: true, ClientStreams: true}

// rawStream is either side of a stream, of bytes.
type rawStream interface {
	SendMsg(message any) error
	RecvMsg(message any) error
	Context() context.Context
}

func sendRaw(s rawStream, message []byte) error { return s.SendMsg(&message) }

func receiveRaw(s rawStream) ([]byte, error) {
	var message []byte
	err := s.RecvMsg(&message)
	return message, err
}

// serveRaw serves the streams of agents on a port of the control host and
// returns the address.
func serveRaw(t *testing.T, stack *testbed.Stack, port uint16, serve func(rawStream) error) string {
	t.Helper()
	address := netip.AddrPortFrom(stack.Control.IPv4, port).String()
	var listener net.Listener
	err := stack.Control.Do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxRecvMsgSize(maxMessage),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			if method, _ := grpc.MethodFromServerStream(stream); method != syncMethod {
				return status.Errorf(codes.Unimplemented, "method %s", method)
			}
			return serve(stream)
		}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener) //nolint:errcheck // ends by Stop
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return address
}

// dialRaw opens a stream to a calculator. The context ends it.
func dialRaw(ctx context.Context, target string, dial func(ctx context.Context, address string) (net.Conn, error)) (rawStream, error) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if dial != nil {
		options = append(options, grpc.WithContextDialer(dial))
	}
	conn, err := grpc.NewClient(target, options...)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return conn.NewStream(ctx, &syncDesc, syncMethod, grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true))
}

// change turns a message that passes into what is passed on in its place.
type change func(message []byte) [][]byte

// asItIs passes a message on.
func asItIs(message []byte) [][]byte { return [][]byte{message} }

// startTap puts a tap between agents and the cluster's calculator, through which
// up and down see, and may change, every message. It returns the address for
// agents to dial.
func startTap(t *testing.T, stack *testbed.Stack, port uint16, up, down change) string {
	t.Helper()
	dial := func(_ context.Context, address string) (conn net.Conn, err error) {
		err = stack.Control.Do(func() (err error) {
			conn, err = net.Dial("tcp", address)
			return err
		})
		return conn, err
	}
	return serveRaw(t, stack, port, func(agent rawStream) error {
		ctx, cancel := context.WithCancel(agent.Context())
		defer cancel()
		calculator, err := dialRaw(ctx, "passthrough:///"+stack.CalculatorAddress(), dial)
		if err != nil {
			return err
		}
		ended := make(chan error, 2)
		go func() { ended <- passOn(calculator, agent, up) }()
		go func() { ended <- passOn(agent, calculator, down) }()
		return <-ended
	})
}

func passOn(to, from rawStream, through change) error {
	for {
		message, err := receiveRaw(from)
		if err != nil {
			return err
		}
		for _, m := range through(message) {
			if err := sendRaw(to, m); err != nil {
				return err
			}
		}
	}
}
