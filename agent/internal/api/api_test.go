// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	"github.com/millrace-project/millrace/proto/errorinfo"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// plane answers what the test says.
type plane struct {
	dataplane.Dataplane
	flows   []*agentv1.ListConntrackResponse
	clients []*agentv1.ListAffinitiesResponse
	broken  error
}

func (p *plane) State() *agentv1.DataplaneState {
	return &agentv1.DataplaneState{Mode: dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF}
}

func (p *plane) Services(_, name string, visit func(*agentv1.ListServicesResponse) error) error {
	if p.broken != nil {
		return p.broken
	}
	return visit(&agentv1.ListServicesResponse{Namespace: "ns", Name: name})
}

func (p *plane) Affinities(visit func(*agentv1.ListAffinitiesResponse) error) error {
	for _, c := range p.clients {
		if err := visit(c); err != nil {
			return err
		}
	}
	return nil
}

func (p *plane) Conntrack(visit func(*agentv1.ListConntrackResponse) error) error {
	for _, f := range p.flows {
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

func (p *plane) DumpMap(name string, visit func(*agentv1.DumpMapResponse) error) error {
	if name != "ids" {
		return dataplane.ErrNoMap
	}
	return visit(&agentv1.DumpMapResponse{Key: "k", Value: "v"})
}

// GrowMap fails as the map's name says.
func (p *plane) GrowMap(_ context.Context, name string, _ uint32) (uint32, error) {
	return 64, map[string]error{
		"nonesuch": dataplane.ErrNoMap, "config": dataplane.ErrFixedSize, "small": dataplane.ErrNotLarger,
		"moving": dataplane.ErrMoving, "huge": errors.New("create map: cannot allocate memory"),
	}[name]
}

func (p *plane) Diff(_ func(func()) error, visit func(*agentv1.DiffDesiredResponse) error) error {
	return visit(&agentv1.DiffDesiredResponse{Object: "config"})
}

func (p *plane) Repair(context.Context) (int, []*agentv1.DiffDesiredResponse, dataplane.Result, error) {
	return 3, []*agentv1.DiffDesiredResponse{{Object: "config"}}, dataplane.Result{Retry: true}, p.broken
}

type fakes struct{ after dataplane.Result }

func (f *fakes) Status() applier.Status {
	return applier.Status{Programmed: 4, ErrorCount: 150, Errors: make([]*dataplanev1.ResourceError, 100), LastLatency: time.Second}
}

func (f *fakes) Between(_ context.Context, do func()) error {
	do()
	return nil
}

func (f *fakes) Repair(_ context.Context, do func(dataplane.Result) dataplane.Result) error {
	f.after = do(dataplane.Result{})
	return nil
}

type stream struct{}

func (stream) Status() syncclient.Status {
	return syncclient.Status{Address: "c:1", Connected: true, InSync: true, Received: 5, Position: map[string]uint64{"services": 9}}
}

func serve(t *testing.T, p *plane) (*grpc.ClientConn, *fakes, *Serving) {
	t.Helper()
	f := &fakes{}
	store := held.New()
	b := held.NewBatch()
	b.Upsert(held.Name{Type: 5, Key: "a/b"}, held.Entry{})
	store.Apply(b)
	socket := filepath.Join(t.TempDir(), "s")
	s := &Server{Node: "n1", Version: "v", Store: store, Dataplane: p, Applier: f, Stream: stream{}, Problems: func() []string { return []string{"p"} }, Known: func(*agentv1.GetStatusResponse) {}}
	serving, err := Serve(s, socket, "127.0.0.1:0", Guard{}, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(serving.Stop)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, f, serving
}

func all[T any](t *testing.T, s grpc.ServerStreamingClient[T], err error) ([]*T, error) {
	t.Helper()
	if err != nil {
		return nil, err
	}
	var list []*T
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, m)
	}
}

func reason(err error) (codes.Code, string) {
	return status.Code(err), errorinfo.Reason(err)
}

func TestAnswers(t *testing.T) {
	p := &plane{flows: []*agentv1.ListConntrackResponse{
		{Client: "10.0.0.1:5", Backend: "10.0.0.2:80", Service: "a/b"},
		{Client: "[fd00::1]:5", Backend: "[fd00::2]:80", Service: "a/c"},
	}}
	conn, f, _ := serve(t, p)
	c := agentv1.NewAgentServiceClient(conn)
	ctx := t.Context()
	st, err := c.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil || st.GetNodeName() != "n1" || st.GetHeld()["SERVICE"] != 1 || st.GetCalculator().GetProgrammedRevision() != 4 ||
		st.GetCalculator().GetReceivedRevision() != 5 || len(st.GetErrors()) != 100 || len(st.GetProblems()) != 2 ||
		st.GetCalculator().GetPosition().GetResourceVersions()["services"] != 9 {
		t.Fatalf("status %v, %v", st, err)
	}
	for _, q := range []struct {
		request *agentv1.ListConntrackRequest
		want    int
	}{
		{&agentv1.ListConntrackRequest{}, 2},
		{&agentv1.ListConntrackRequest{Address: "10.0.0.2"}, 1},
		{&agentv1.ListConntrackRequest{Address: "fd00:0::1"}, 1},
		{&agentv1.ListConntrackRequest{Address: "10.0.0.3"}, 0},
		{&agentv1.ListConntrackRequest{Service: "a/c"}, 1},
	} {
		s, err := c.ListConntrack(ctx, q.request)
		if got, err := all(t, s, err); err != nil || len(got) != q.want {
			t.Errorf("%v: %d flows, %v", q.request, len(got), err)
		}
	}
	p.clients = []*agentv1.ListAffinitiesResponse{
		{Client: "10.0.0.1", Backend: "10.0.0.2:80", Service: "a/b"},
		{NetnsCookie: 7, Backend: "[fd00::2]:80", Service: "a/c"},
	}
	for _, q := range []struct {
		request *agentv1.ListAffinitiesRequest
		want    int
		reason  string
	}{
		{&agentv1.ListAffinitiesRequest{}, 2, ""},
		{&agentv1.ListAffinitiesRequest{Address: "10.0.0.1"}, 1, ""},
		{&agentv1.ListAffinitiesRequest{Address: "::ffff:10.0.0.2"}, 1, ""},
		{&agentv1.ListAffinitiesRequest{Address: "fd00:0::2"}, 1, ""},
		{&agentv1.ListAffinitiesRequest{Address: "10.0.0.3"}, 0, ""},
		{&agentv1.ListAffinitiesRequest{Service: "a/c"}, 1, ""},
		{&agentv1.ListAffinitiesRequest{Service: "c"}, 0, ReasonInvalidArgument},
		{&agentv1.ListAffinitiesRequest{Address: "c"}, 0, ReasonInvalidArgument},
	} {
		s, err := c.ListAffinities(ctx, q.request)
		got, err := all(t, s, err)
		if _, why := reason(err); len(got) != q.want || why != q.reason {
			t.Errorf("%v: %d clients, %v", q.request, len(got), err)
		}
	}
	d, err := c.DumpMap(ctx, &agentv1.DumpMapRequest{Name: "ids"})
	if got, err := all(t, d, err); err != nil || len(got) != 1 {
		t.Errorf("dump %v, %v", got, err)
	}
	r, err := c.Repair(ctx, &agentv1.RepairRequest{})
	if err != nil || r.GetRepaired() != 3 || len(r.GetRemaining()) != 1 || !f.after.Retry {
		t.Errorf("repair %v, %v", r, err)
	}
	df, err := c.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if got, err := all(t, df, err); err != nil || len(got) != 1 {
		t.Errorf("diff %v, %v", got, err)
	}
}

func TestErrors(t *testing.T) {
	conn, _, _ := serve(t, &plane{broken: errors.New("no")})
	c := agentv1.NewAgentServiceClient(conn)
	ctx := t.Context()
	check := func(what string, err error, code codes.Code, want string) {
		t.Helper()
		if gotCode, got := reason(err); gotCode != code || got != want {
			t.Errorf("%s: %v %s, want %v %s", what, gotCode, got, code, want)
		}
	}
	d, err := c.DumpMap(ctx, &agentv1.DumpMapRequest{Name: "nope"})
	_, err = all(t, d, err)
	check("unknown map", err, codes.NotFound, ReasonNoSuchMap)
	l, err := c.ListConntrack(ctx, &agentv1.ListConntrackRequest{Address: "x"})
	_, err = all(t, l, err)
	check("bad address", err, codes.InvalidArgument, ReasonInvalidArgument)
	l, err = c.ListConntrack(ctx, &agentv1.ListConntrackRequest{Service: "x"})
	_, err = all(t, l, err)
	check("bad service", err, codes.InvalidArgument, ReasonInvalidArgument)
	s, err := c.ListServices(ctx, &agentv1.ListServicesRequest{})
	_, err = all(t, s, err)
	check("broken kernel", err, codes.Internal, ReasonKernel)
	_, err = c.Repair(ctx, &agentv1.RepairRequest{})
	check("broken repair", err, codes.Internal, ReasonKernel)
}

func TestHealthAndReflection(t *testing.T) {
	conn, _, serving := serve(t, &plane{})
	h := healthv1.NewHealthClient(conn)
	for _, want := range []healthv1.HealthCheckResponse_ServingStatus{healthv1.HealthCheckResponse_NOT_SERVING, healthv1.HealthCheckResponse_SERVING} {
		serving.SetServing(want == healthv1.HealthCheckResponse_SERVING)
		r, err := h.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "millrace.agent.v1.AgentService"})
		if err != nil || r.GetStatus() != want {
			t.Errorf("health %v, %v, want %v", r, err, want)
		}
	}
	s, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	found := false
	for _, service := range r.GetListServicesResponse().GetService() {
		found = found || service.GetName() == "millrace.agent.v1.AgentService"
	}
	if err != nil || !found {
		t.Fatalf("reflection %v, %v", r, err)
	}
}

// TestSocket replaces a socket that nobody serves and respects one in use.
func TestSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	fail := func(err error) { t.Error(err) }
	if _, err := Serve(&Server{}, socket, "", Guard{}, fail); err == nil {
		t.Fatal("took a socket that somebody serves")
	}
	l.Close()
	s, err := Serve(&Server{}, socket, "", Guard{}, fail)
	if err != nil {
		t.Fatal(err)
	}
	s.Stop()
}

func TestGrowMap(t *testing.T) {
	conn, _, _ := serve(t, &plane{})
	client := agentv1.NewAgentServiceClient(conn)
	for name, want := range map[string]struct {
		code   codes.Code
		reason string
		text   string
	}{
		"nonesuch": {codes.NotFound, ReasonNoSuchMap, `"nonesuch"`},
		"config":   {codes.FailedPrecondition, ReasonMapFixed, "keeps the size"},
		"small":    {codes.FailedPrecondition, ReasonMapNotLarger, "max_entries"},
		"moving":   {codes.Aborted, ReasonMapMoving, "last growth"},
		"huge":     {codes.ResourceExhausted, ReasonMapRefused, "cannot allocate memory"},
	} {
		_, err := client.GrowMap(context.Background(), &agentv1.GrowMapRequest{Name: name, MaxEntries: 128})
		code, why := reason(err)
		if code != want.code || why != want.reason || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v (%s), want %s %s and %q", name, err, why, want.code, want.reason, want.text)
		}
	}
	_, err := client.GrowMap(context.Background(), &agentv1.GrowMapRequest{Name: "established_v4"})
	if code, why := reason(err); code != codes.InvalidArgument || why != ReasonInvalidArgument {
		t.Errorf("no size: %v", err)
	}
	answer, err := client.GrowMap(context.Background(), &agentv1.GrowMapRequest{Name: "established_v4", MaxEntries: 128})
	if err != nil || answer.GetPreviousMaxEntries() != 64 {
		t.Errorf("%v, %v", answer, err)
	}
}
