// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// testNow is the time that ages in golden files are computed at.
var testNow = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(testNow.Add(-d)) }

// calls records which RPCs a fake server was asked.
type calls struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (c *calls) add(method string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil {
		c.seen = map[string]bool{}
	}
	c.seen[method] = true
}

// serve runs a gRPC server on a listener for as long as the test.
func serve(t *testing.T, lis net.Listener, recorded *calls, register func(*grpc.Server), opts ...grpc.ServerOption) {
	t.Helper()
	server := grpc.NewServer(append(opts,
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			recorded.add(info.FullMethod)
			return handler(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			recorded.add(info.FullMethod)
			return handler(srv, ss)
		}))...)
	register(server)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("fake server: %v", err)
		}
	})
}

func serveUnix(t *testing.T, name string, recorded *calls, register func(*grpc.Server)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, lis, recorded, register)
	return "unix://" + path
}

// fakeAgent answers like an agent of a small cluster.
type fakeAgent struct {
	agentv1.UnimplementedAgentServiceServer
	differences []*agentv1.DiffDesiredResponse
	disconnect  bool
}

func (f *fakeAgent) register(s *grpc.Server) { agentv1.RegisterAgentServiceServer(s, f) }

func (f *fakeAgent) GetStatus(context.Context, *agentv1.GetStatusRequest) (*agentv1.GetStatusResponse, error) {
	st := &agentv1.GetStatusResponse{
		NodeName:  "node-1",
		Version:   "v1.2.3",
		StartTime: ago(26*time.Hour + 12*time.Minute),
		Cni:       &agentv1.CNIState{Binary: "/opt/cni/bin/millrace-cni", Config: "/etc/cni/net.d/10-main.conflist"},
		Calculator: &agentv1.CalculatorConnection{
			Address: "192.0.2.10:7701", CalculatorId: "calc-a", Connected: true, InSync: true,
			ReceivedRevision: 42, ProgrammedRevision: 41, ConnectTime: ago(90 * time.Second), Connects: 2,
			Position: &dataplanev1.Position{ResourceVersions: map[string]uint64{"services": 900, "nodes": 12}},
			Epoch:    "6f1c/0", LastLatency: durationpb.New(3271 * time.Microsecond),
		},
		Dataplane: &agentv1.DataplaneState{
			Mode: dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
			Attachments: []*agentv1.Attachment{
				{Program: "pod_ingress", Target: "veth1", Hook: "tcx/ingress", Adopted: true},
				{Program: "connect4", Target: "/sys/fs/cgroup", Hook: "cgroup/connect4"},
			},
			Devices: []*agentv1.Device{
				{Name: "eth0", Index: 2, Role: "uplink", Reason: "has a default route"},
				{Name: "veth1", Index: 7, Role: "pod", Reason: "route to 10.1.0.5", Endpoint: "shop/cart-0"},
			},
			Features: []*agentv1.Feature{
				{Name: "tcx", Available: true, Used: true},
				{Name: "bpf_set_retval", Consequence: "connections without backends are refused by packets"},
			},
			Kernel: "6.1.0-50-amd64",

			Affinities: 17,
			Programs:   []*agentv1.Program{{Name: "connect4", Instructions: 450, VerifiedInstructions: 1410}},
		},
		Calculators: []*agentv1.KnownCalculator{
			{Address: "192.0.2.10:7701", Origins: []agentv1.Origin{agentv1.Origin_ORIGIN_MOUNTED, agentv1.Origin_ORIGIN_HELD}},
			{Address: "192.0.2.11:7701", Origins: []agentv1.Origin{agentv1.Origin_ORIGIN_STATIC}},
		},
		Authorities: []*agentv1.TrustedAuthority{
			{Subject: "CN=Millrace calculators 8f01", Fingerprint: "8f01c2", ExpireTime: ago(-200 * 24 * time.Hour), Origins: []agentv1.Origin{agentv1.Origin_ORIGIN_MOUNTED}},
			{Subject: "CN=Millrace calculators 77aa", Fingerprint: "77aa00", ExpireTime: ago(-30 * time.Hour), Origins: []agentv1.Origin{agentv1.Origin_ORIGIN_HELD}},
		},
		Held: map[string]uint64{"SERVICE": 3, "NODE_CONFIG": 1},
		Errors: []*dataplanev1.ResourceError{{
			Name:   &dataplanev1.ResourceName{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: "shop/cart"},
			Reason: "MAP_FULL", Field: "ports[1]", Message: "frontends_v4 is full: port 81 is not reachable",
		}},
		Problems: []string{"endpoint shop/web-1: no device found for 10.1.0.9"},
	}
	if f.disconnect {
		st.Calculator = &agentv1.CalculatorConnection{LastError: "UNAVAILABLE: NOT_SYNCED"}
		st.Errors, st.Problems = nil, nil
	}
	return st, nil
}

func fakeServices() []*agentv1.ListServicesResponse {
	return []*agentv1.ListServicesResponse{
		{
			Namespace: "shop", Name: "a-service-with-a-name-longer-than-any-column-would-be-cut-at",
			Frontends: []*agentv1.Frontend{
				{
					Kind: "ClusterIP", Address: "10.96.0.7", Port: 80, Protocol: dataplanev1.Protocol_PROTOCOL_TCP, PortName: "http", ServiceId: 5,
					AffinitySeconds: 10800,
					Backends: []*agentv1.FrontendBackend{
						{Address: "10.1.0.5", Port: 8080, Node: "node-1", Local: true},
						{Address: "10.1.1.5", Port: 8080, Node: "node-2"},
					},
				},
				{Kind: "NodePort", Address: "2001:db8::1", Port: 30080, Protocol: dataplanev1.Protocol_PROTOCOL_TCP, PortName: "http", ServiceId: 5},
			},
		},
		{
			Namespace: "kube-system", Name: "dns",
			Frontends: []*agentv1.Frontend{
				{Kind: "ClusterIP", Address: "10.96.0.10", Port: 53, Protocol: dataplanev1.Protocol_PROTOCOL_UDP, ServiceId: 6},
			},
		},
	}
}

func (f *fakeAgent) ListServices(req *agentv1.ListServicesRequest, stream grpc.ServerStreamingServer[agentv1.ListServicesResponse]) error {
	for _, svc := range fakeServices() {
		if req.GetNamespace() != "" && req.GetNamespace() != svc.GetNamespace() || req.GetName() != "" && req.GetName() != svc.GetName() {
			continue
		}
		if err := stream.Send(svc); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAgent) ListEndpoints(req *agentv1.ListEndpointsRequest, stream grpc.ServerStreamingServer[agentv1.ListEndpointsResponse]) error {
	for _, e := range []*agentv1.ListEndpointsResponse{
		{Namespace: "kube-system", Name: "dns-0", Uid: "77", Addresses: []string{"10.1.0.9"}, Sources: []string{"calculator"},
			Problem: "bridge cni0: 10.1.0.9 has not answered yet"},
		{Namespace: "shop", Name: "cart-0", Uid: "0b5c", Addresses: []string{"10.1.0.5", "fd00:1::5"}, Sources: []string{"calculator", "cni"},
			Device: "veth1", DeviceIndex: 12, DeviceBy: "cni", ContainerId: "4f3a", Interface: "eth0", NetnsCookie: 8195,
			AddTime: ago(90 * time.Second)},
	} {
		if req.GetNamespace() != "" && req.GetNamespace() != e.GetNamespace() || req.GetName() != "" && req.GetName() != e.GetName() {
			continue
		}
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAgent) ListConntrack(req *agentv1.ListConntrackRequest, stream grpc.ServerStreamingServer[agentv1.ListConntrackResponse]) error {
	if req.GetAddress() == "192.0.2.77" {
		return nil
	}
	return stream.Send(&agentv1.ListConntrackResponse{
		Protocol: dataplanev1.Protocol_PROTOCOL_TCP, Client: "192.0.2.50:40312", Frontend: "192.0.2.1:30080",
		Backend: "10.1.1.5:8080", Source: "192.0.2.1:61000", State: "established",
		Expires: durationpb.New(7199*time.Second + 400*time.Millisecond), Service: "shop/cart",
		Flags: []string{"snat", "cluster"}, Family: 4,
	})
}

func (f *fakeAgent) ListAffinities(req *agentv1.ListAffinitiesRequest, stream grpc.ServerStreamingServer[agentv1.ListAffinitiesResponse]) error {
	if req.GetAddress() == "192.0.2.77" {
		return nil
	}
	for _, c := range []*agentv1.ListAffinitiesResponse{
		{Service: "shop/cart", PortName: "http", Family: 4, Client: "192.0.2.50", Backend: "10.1.1.5:8080", Usable: true,
			Idle: durationpb.New(90 * time.Second), Expires: durationpb.New(10710 * time.Second)},
		{Service: "shop/cart", PortName: "http", Family: 6, NetnsCookie: 4711, Backend: "[fd00:1::5]:8080",
			Idle: durationpb.New(time.Second), Expires: durationpb.New(10799 * time.Second)},
		{Service: "shop/cart", PortName: "http", Family: 4, NetnsCookie: 1, Host: true, Backend: "10.1.1.5:8080", Usable: true,
			Idle: durationpb.New(3 * time.Second), Expires: durationpb.New(10797 * time.Second)},
		{Family: 4, Client: "192.0.2.51", Backend: "10.1.1.7:8080", Idle: durationpb.New(time.Second)},
	} {
		if err := stream.Send(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAgent) ListMaps(context.Context, *agentv1.ListMapsRequest) (*agentv1.ListMapsResponse, error) {
	return &agentv1.ListMapsResponse{Maps: []*agentv1.MapState{
		{Name: "backends_v4", Type: "Array", KeySize: 4, ValueSize: 8, MaxEntries: 1000, Entries: 15, PinPath: "/sys/fs/bpf/millrace/backends_v4"},
		{Name: "config", Type: "Array", KeySize: 4, ValueSize: 64, MaxEntries: 1, Entries: 1},
	}}, nil
}

func (f *fakeAgent) DumpMap(req *agentv1.DumpMapRequest, stream grpc.ServerStreamingServer[agentv1.DumpMapResponse]) error {
	if req.GetName() != "backends_v4" {
		return status.Errorf(codes.NotFound, "there is no map %q", req.GetName())
	}
	return stream.Send(&agentv1.DumpMapResponse{Key: "3", Value: "10.1.0.5:8080 local"})
}

func (f *fakeAgent) GrowMap(_ context.Context, req *agentv1.GrowMapRequest) (*agentv1.GrowMapResponse, error) {
	if req.GetName() == "config" {
		return nil, status.Error(codes.FailedPrecondition, "config: this map keeps the size it was created with")
	}
	return &agentv1.GrowMapResponse{PreviousMaxEntries: req.GetMaxEntries() / 2}, nil
}

func (f *fakeAgent) DiffDesired(_ *agentv1.DiffDesiredRequest, stream grpc.ServerStreamingServer[agentv1.DiffDesiredResponse]) error {
	for _, d := range f.differences {
		if err := stream.Send(d); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAgent) Repair(context.Context, *agentv1.RepairRequest) (*agentv1.RepairResponse, error) {
	return &agentv1.RepairResponse{Repaired: 4, Remaining: f.differences}, nil
}

// fakeCalculator answers like a calculator of the same cluster.
type fakeCalculator struct {
	calculatorv1.UnimplementedCalculatorServiceServer
}

func (f *fakeCalculator) register(s *grpc.Server) {
	calculatorv1.RegisterCalculatorServiceServer(s, f)
}

func (f *fakeCalculator) GetStatus(context.Context, *calculatorv1.GetStatusRequest) (*calculatorv1.GetStatusResponse, error) {
	return &calculatorv1.GetStatusResponse{
		Version: "v1.2.3", CalculatorId: "calc-a", Epoch: "6f1c/0", Source: "kube", Synced: true,
		Position: &dataplanev1.Position{ResourceVersions: map[string]uint64{"services": 900, "nodes": 12}},
		Revision: 42, Resources: map[string]uint64{"RESOURCE_TYPE_SERVICE": 3}, StartTime: ago(3 * 24 * time.Hour),
		Trust: &calculatorv1.Trust{
			Secret: "millrace-system/millrace-ca", ConfigMap: "millrace-system/millrace-calculators",
			Addresses: []string{"192.0.2.10:7701", "192.0.2.11:7701"}, ServingExpireTime: ago(-20 * 24 * time.Hour),
			Authorities: []*calculatorv1.Authority{
				{Role: calculatorv1.AuthorityRole_AUTHORITY_ROLE_CURRENT, Subject: "CN=Millrace calculators 77aa", Fingerprint: "77aa00", ExpireTime: ago(-30 * time.Hour)},
				{Role: calculatorv1.AuthorityRole_AUTHORITY_ROLE_NEXT, Subject: "CN=Millrace calculators 8f01", Fingerprint: "8f01c2", ExpireTime: ago(-200 * 24 * time.Hour)},
			},
		},
		Problems: []*calculatorv1.Problem{
			{Kind: "File", Name: "cart.yaml#2", Message: "does not parse"},
			{Kind: "Service", Namespace: "shop", Name: "cart", Field: "spec.ports[0].nodePort", Message: "70000 is out of range; the port gets no node port"},
		},
	}, nil
}

func (f *fakeCalculator) ListNodes(context.Context, *calculatorv1.ListNodesRequest) (*calculatorv1.ListNodesResponse, error) {
	return &calculatorv1.ListNodesResponse{Nodes: []*calculatorv1.NodeState{
		{
			Name: "node-1", Connected: true, PeerAddress: "192.0.2.1:40000", AgentVersion: "v1.2.3", SentRevision: 42, Lag: 1,
			LastLatency: durationpb.New(3271 * time.Microsecond), ConnectTime: ago(90 * time.Second), InSync: true,
			DataplaneMode: dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
			Ack: &dataplanev1.Ack{
				ProgrammedRevision: 41, LowestFailedRevision: 40, ErrorCount: 1,
				Errors: []*dataplanev1.ResourceError{{
					Name:   &dataplanev1.ResourceName{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: "shop/cart"},
					Reason: "MAP_FULL", Message: "frontends_v4 is full",
				}},
			},
			Report: &dataplanev1.Report{
				AttachedEndpoints: []*dataplanev1.ResourceName{{Key: "shop/cart-0"}},
				Problems:          []string{"endpoint shop/web-1: no device found for 10.1.0.9"},
			},
			EndpointMismatches: []*calculatorv1.EndpointMismatch{
				{Pod: "shop/web-2", Uid: "31aa", Message: "there is no pod of this name on the node"},
			},
		},
		{Name: "node-2", Lag: 42},
	}}, nil
}

func (f *fakeCalculator) DumpNode(req *calculatorv1.DumpNodeRequest, stream grpc.ServerStreamingServer[calculatorv1.DumpNodeResponse]) error {
	if req.GetNodeName() != "node-1" {
		return status.Errorf(codes.NotFound, "no node %q", req.GetNodeName())
	}
	for _, r := range fakeResources() {
		if len(req.GetTypes()) > 0 && !slices.Contains(req.GetTypes(), r.GetName().GetType()) {
			continue
		}
		if err := stream.Send(&calculatorv1.DumpNodeResponse{Resource: r}); err != nil {
			return err
		}
	}
	return nil
}
