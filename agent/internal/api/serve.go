// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/millrace-project/millrace/agent/internal/transport"
	"github.com/millrace-project/millrace/proto/access"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// Guard is what protects the TCP address.
type Guard struct {
	// TLS is how to serve; nil for plaintext, where everybody who calls is taken
	// for an operator.
	TLS *tls.Config
	// Gate stands before the RPCs if there is TLS.
	Gate *access.Gate
	// Denied is told of a call that was refused before it reached its RPC. It may
	// be nil.
	Denied func(ctx context.Context, method string, caller access.Caller, err error)
}

// Serving is the API being served.
type Serving struct {
	// Health is SERVING once the kernel holds what the log held, for the whole
	// and for AgentService.
	Health  *health.Server
	servers []*grpc.Server
	wait    sync.WaitGroup
}

// Serve serves on a unix socket and on a TCP address, each if not empty.
// EndpointService is on the socket alone: who tells of pods is on the node, and
// root. failed is told when serving ends by itself.
func Serve(s *Server, socket, address string, guard Guard, failed func(error)) (*Serving, error) {
	serving := &Serving{Health: health.NewServer()}
	local := access.Local()
	local.Denied = guard.Denied
	serving.SetServing(false)
	start := func(listener net.Listener, onSocket bool, gate *access.Gate, options ...grpc.ServerOption) {
		server := grpc.NewServer(append(gate.Options(), options...)...)
		agentv1.RegisterAgentServiceServer(server, s)
		if onSocket && s.Endpoints != nil {
			agentv1.RegisterEndpointServiceServer(server, s.Endpoints)
		}
		healthv1.RegisterHealthServer(server, serving.Health)
		reflection.Register(server)
		serving.servers = append(serving.servers, server)
		serving.wait.Add(1)
		go func() {
			defer serving.wait.Done()
			if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				failed(fmt.Errorf("serve on %s: %w", listener.Addr(), err))
			}
		}()
	}
	if socket != "" {
		listener, err := transport.ListenUnix(socket)
		if err != nil {
			return nil, err
		}
		start(listener, true, local)
	}
	if address != "" {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			serving.Stop()
			return nil, fmt.Errorf("listen: %w", err)
		}
		if guard.TLS == nil {
			start(listener, false, local)
		} else {
			start(listener, false, guard.Gate, grpc.Creds(credentials.NewTLS(guard.TLS)))
		}
	}
	return serving, nil
}

// SetServing tells health checks.
func (s *Serving) SetServing(ok bool) {
	state := healthv1.HealthCheckResponse_NOT_SERVING
	if ok {
		state = healthv1.HealthCheckResponse_SERVING
	}
	s.Health.SetServingStatus("", state)
	s.Health.SetServingStatus(agentv1.AgentService_ServiceDesc.ServiceName, state)
}

// Stop ends all calls and stops serving.
func (s *Serving) Stop() {
	s.Health.Shutdown()
	for _, server := range s.servers {
		server.Stop()
	}
	s.wait.Wait()
}
