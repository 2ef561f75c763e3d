// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/millrace-project/millrace/proto/access"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/api"
	"github.com/millrace-project/millrace/services/calculator/internal/auth"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
)

// servers are the gRPC servers, one for each kind of credentials, with the
// same services, and the HTTP server for metrics.
type servers struct {
	tcp, unix *grpc.Server
	health    *health.Server
	http      *http.Server
}

const (
	// deadAfter and deadTimeout are how soon a peer that has vanished is
	// noticed: 20 s together. A thousand agents are then asked 67 times a
	// second, which nobody notices.
	deadAfter   = 15 * time.Second
	deadTimeout = 5 * time.Second
	// handshakeTimeout is how long a client may take until it speaks gRPC.
	handshakeTimeout = 10 * time.Second
	// minClientPing is how often clients may ask whether the server is there.
	minClientPing = 5 * time.Second
)

func newServers(o *options, callers *auth.Service, sync *publish.Service, calculator *api.Service) *servers {
	s := &servers{health: health.NewServer()}
	// Agents are served once the source has been read in whole; questions are
	// answered from the start.
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	s.health.SetServingStatus(dataplanev1.SyncService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_NOT_SERVING)
	s.health.SetServingStatus(calculatorv1.CalculatorService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	build := func(creds credentials.TransportCredentials, gate *access.Gate) *grpc.Server {
		parameters := keepalive.ServerParameters{Time: deadAfter, Timeout: deadTimeout}
		if o.maxConnectionAge > 0 {
			// Agents are asked by the stream itself, which leaves them time to
			// go in order; this is for connections without a stream.
			parameters.MaxConnectionAge = 2 * o.maxConnectionAge
			parameters.MaxConnectionAgeGrace = o.maxConnectionAgeGrace
		}
		server := grpc.NewServer(append(gate.Options(),
			grpc.Creds(creds),
			grpc.ForceServerCodecV2(publish.Codec()),
			// A handshake that hangs would hold up stopping.
			grpc.ConnectionTimeout(handshakeTimeout),
			grpc.KeepaliveParams(parameters),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minClientPing, PermitWithoutStream: true}),
		)...)
		dataplanev1.RegisterSyncServiceServer(server, sync)
		calculatorv1.RegisterCalculatorServiceServer(server, calculator)
		calculatorv1.RegisterAccessServiceServer(server, callers)
		healthv1.RegisterHealthServer(server, s.health)
		channelz.RegisterChannelzServiceToServer(server)
		reflection.Register(server) // v1 and v1alpha
		return server
	}
	if o.listen != "" {
		s.tcp = build(o.credentials, o.gate(callers.Authenticator))
	}
	if o.socket != "" {
		s.unix = build(insecure.NewCredentials(), callers.Local())
	}
	return s
}

// grpc returns the gRPC servers there are.
func (s *servers) grpc() []*grpc.Server {
	var list []*grpc.Server
	for _, server := range []*grpc.Server{s.tcp, s.unix} {
		if server != nil {
			list = append(list, server)
		}
	}
	return list
}

// followHealth reports health as serving once the source has been read.
func (s *servers) followHealth(ctx context.Context, publisher *publish.Publisher) {
	if publisher.AwaitSynced(ctx) != nil {
		return
	}
	s.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	s.health.SetServingStatus(dataplanev1.SyncService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
}

// stop sends agents elsewhere, waits for them a little and stops serving.
func (s *servers) stop(sync *publish.Service, o *options) {
	s.health.Shutdown()
	// At once nobody new is accepted, and every client hears that this server
	// goes (GOAWAY); streams stay open until they are told to leave.
	for _, server := range s.grpc() {
		go server.GracefulStop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), o.drainTime+o.drainGrace)
	defer cancel()
	sync.Drain(ctx, "the calculator is stopping", o.drainTime, o.drainGrace)
	for _, server := range s.grpc() {
		server.Stop()
	}
	if s.http != nil {
		s.http.Close()
	}
}

// newHTTP serves metrics and what probes ask for.
func newHTTP(registry *prometheus.Registry, notReady func() string, withPprof bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{Registry: registry}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	if withPprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}

func (s *servers) serveHTTP(listener net.Listener) error {
	if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
