// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

type server = grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]

// calculator is a calculator that does what a test says on each stream.
type calculator struct {
	dataplanev1.UnimplementedSyncServiceServer
	follow func(server, *dataplanev1.Hello) error
}

func (c *calculator) Sync(s grpc.BidiStreamingServer[dataplanev1.SyncRequest, dataplanev1.SyncResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	return c.follow(s, first.GetHello())
}

func serve(t *testing.T, path string, follow func(server, *dataplanev1.Hello) error) *grpc.Server {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	dataplanev1.RegisterSyncServiceServer(g, &calculator{follow: follow})
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(listener) }() //nolint:errcheck // ends by Stop
	t.Cleanup(func() { g.Stop(); <-done })
	return g
}

// plane programs nothing, without error.
type plane struct{ dataplane.Dataplane }

func (plane) Apply(context.Context, dataplane.Change) dataplane.Result { return dataplane.Result{} }
func (plane) Retry(context.Context) dataplane.Result                   { return dataplane.Result{} }

// journal keeps nothing but what is held.
type journal struct{ store *held.Store }

func (j journal) Append(b *held.Batch) error { j.store.Apply(b); return nil }
func (journal) Fault() string                { return "" }

type agent struct {
	*Client
	store   *held.Store
	applier *applier.Applier
}

// known are sockets of calculators.
type known []string

func (k known) Addresses() []string      { return k }
func (k known) Changed() <-chan struct{} { return nil }
func (k known) Target(path string) (Target, error) {
	return Target{Address: path, Dial: "unix://" + path, Credentials: insecure.NewCredentials()}, nil
}

func start(t *testing.T, paths ...string) *agent {
	t.Helper()
	store := held.New()
	m := metrics.New("test")
	a := applier.New(store, journal{store}, plane{}, m, zap.NewNop())
	options := Options{Node: "n1", Version: "test", Backoff: Backoff{First: 5 * time.Millisecond, Last: 20 * time.Millisecond}}
	options.Discovery = known(paths)
	c := New(options, store, a, m, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { a.Run(ctx); done <- struct{}{} }()
	go func() { c.Run(ctx); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return &agent{c, store, a}
}

// await waits for a condition that nothing tells of.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 20 s: %s", what)
		}
	}
}

func welcome(s server, epoch string) error {
	return s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Welcome{Welcome: &dataplanev1.Welcome{
		CalculatorId: "c1", Epoch: epoch, Buckets: digest.Count,
	}}})
}

func resource(key string, version uint64) *dataplanev1.Resource {
	return &dataplanev1.Resource{
		Name:    &dataplanev1.ResourceName{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: key},
		Version: version, Content: &dataplanev1.Resource_Service{Service: &dataplanev1.Service{Name: key}},
	}
}

func update(s server, resources ...*dataplanev1.Resource) error {
	return s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Update{Update: &dataplanev1.Update{Upserts: resources}}})
}

func commit(s server, revision, position uint64, inSync bool) error {
	return s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Commit{Commit: &dataplanev1.Commit{
		Revision: revision, Position: &dataplanev1.Position{ResourceVersions: map[string]uint64{"services": position}}, InSync: inSync,
	}}})
}

// acked waits for the acknowledgement of a revision.
func acked(s server, revision uint64) (*dataplanev1.Ack, error) {
	for {
		r, err := s.Recv()
		if err != nil {
			return nil, err
		}
		if ack := r.GetAck(); ack.GetProgrammedRevision() >= revision {
			return ack, nil
		}
	}
}

// TestResume syncs, loses the calculator, and introduces itself to the next
// process with everything it was given.
func TestResume(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	acks := make(chan *dataplanev1.Ack, 1)
	first := serve(t, path, func(s server, h *dataplanev1.Hello) error {
		if h.GetNodeName() != "n1" || len(h.GetTypes()) != 6 || len(h.GetBucketDigests()) != 0 || h.GetEpoch() != "" {
			t.Errorf("first hello %v", h)
		}
		if err := errors.Join(welcome(s, "e/1"), update(s, resource("a", 1), resource("b", 2)), commit(s, 10, 100, true)); err != nil {
			return err
		}
		ack, err := acked(s, 10)
		acks <- ack
		<-s.Context().Done()
		return err
	})
	a := start(t, path)
	if ack := <-acks; ack.GetErrorCount() != 0 {
		t.Fatalf("ack %v", ack)
	}
	if s := a.Status(); !s.InSync || s.Received != 10 || s.CalculatorID != "c1" || s.Connects != 1 {
		t.Fatalf("status %+v", s)
	}
	first.Stop()
	type answer struct {
		hello *dataplanev1.Hello
		held  *dataplanev1.Held
	}
	answers := make(chan answer, 1)
	bucket := uint32(digest.Bucket(resource("a", 1).GetName()))
	serve(t, path, func(s server, h *dataplanev1.Hello) error {
		err := errors.Join(welcome(s, "e/1"), s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_HeldRequest{
			HeldRequest: &dataplanev1.HeldRequest{Buckets: []uint32{bucket}},
		}}))
		for err == nil {
			var r *dataplanev1.SyncRequest
			if r, err = s.Recv(); r.GetHeld() != nil {
				answers <- answer{h, r.GetHeld()}
				break
			}
		}
		<-s.Context().Done()
		return err
	})
	got := <-answers
	var want digest.Buckets
	want.Add(resource("a", 1).GetName(), 1)
	want.Add(resource("b", 2).GetName(), 2)
	if !slices.Equal(got.hello.GetBucketDigests(), want.Digests()) || got.hello.GetEpoch() != "e/1" ||
		got.hello.GetPosition().GetResourceVersions()["services"] != 100 {
		t.Fatalf("second hello %v", got.hello)
	}
	if r := got.held.GetResources(); len(r) != 1 || r[0].GetName().GetKey() != "a" || r[0].GetVersion() != 1 || got.held.GetBucket() != bucket {
		t.Fatalf("held %v", got.held)
	}
}

// TestDrain moves to the other calculator when asked to go.
func TestDrain(t *testing.T) {
	dir := t.TempDir()
	arrived := make(chan string, 16)
	for _, name := range []string{"a", "b"} {
		drained := false
		serve(t, filepath.Join(dir, name), func(s server, _ *dataplanev1.Hello) error {
			arrived <- name
			if err := welcome(s, "e/1"); err != nil {
				return err
			}
			if !drained {
				drained = true
				if err := s.Send(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Drain{Drain: &dataplanev1.Drain{Reason: "test"}}}); err != nil {
					return err
				}
			}
			<-s.Context().Done()
			return nil
		})
	}
	start(t, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	one, two, three := <-arrived, <-arrived, <-arrived
	if one == two || two == three {
		t.Fatalf("went to %s, %s, %s: not away from the one that drains", one, two, three)
	}
}

// TestUnknownMessage sends a message of a later version: it is named in the
// acknowledgement, and everything else goes on.
func TestUnknownMessage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	acks := make(chan *dataplanev1.Ack, 1)
	serve(t, path, func(s server, _ *dataplanev1.Hello) error {
		strange := &dataplanev1.SyncResponse{}
		strange.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "later"))
		if err := errors.Join(welcome(s, "e/1"), s.Send(strange), update(s, resource("a", 1)), commit(s, 1, 1, true)); err != nil {
			return err
		}
		ack, err := acked(s, 1)
		acks <- ack
		<-s.Context().Done()
		return err
	})
	a := start(t, path)
	ack := <-acks
	if len(ack.GetErrors()) != 1 || ack.GetErrors()[0].GetReason() != reasonUnknown || ack.GetErrors()[0].GetName().GetKey() != "SyncResponse field 99" {
		t.Fatalf("ack %v", ack)
	}
	if got := a.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("held %v", got)
	}
}

// TestBackwards refuses a calculator that knows less, keeps what it has, and
// finds the one that knows as much.
func TestBackwards(t *testing.T) {
	dir := t.TempDir()
	stream := 0
	refused, looked := make(chan struct{}), make(chan struct{})
	serve(t, filepath.Join(dir, "c"), func(s server, _ *dataplanev1.Hello) error {
		stream++
		err := welcome(s, "e/1")
		switch stream {
		case 1:
			err = errors.Join(err, update(s, resource("a", 1)), commit(s, 1, 100, true))
			if _, e := acked(s, 1); e != nil {
				return e
			}
			// Less in a kind: the batch must not be believed.
			err = errors.Join(err, update(s, resource("old", 1)), commit(s, 2, 99, true))
			<-s.Context().Done()
			close(refused)
			return err
		case 2:
			<-looked
			err = errors.Join(err, commit(s, 1, 101, true))
		}
		<-s.Context().Done()
		return err
	})
	a := start(t, filepath.Join(dir, "c"))
	<-refused
	await(t, "the refusal is told", func() bool { return a.Status().LastError != "" })
	if got := a.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("held %v", got)
	}
	if got := a.store.Meta().Position["services"]; got != 100 {
		t.Fatalf("position %d", got)
	}
	close(looked)
	await(t, "the next stream's batch", func() bool { return a.store.Meta().Position["services"] == 101 })
}

// TestSetBack follows a cluster whose state was set back to lower positions.
func TestSetBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	stream := 0
	serve(t, path, func(s server, _ *dataplanev1.Hello) error {
		stream++
		if stream == 1 {
			if err := errors.Join(welcome(s, "e/1"), commit(s, 1, 100, true)); err != nil {
				return err
			}
			_, err := acked(s, 1)
			return err
		}
		err := errors.Join(welcome(s, "e/2"), commit(s, 1, 5, true))
		<-s.Context().Done()
		return err
	})
	a := start(t, path)
	await(t, "the lower position of the new epoch", func() bool {
		m := a.store.Meta()
		return m.Epoch == "e/2" && m.Position["services"] == 5
	})
}

// TestOlderEpoch does not follow a calculator that computes for an epoch before
// the agent's, and keeps what it has.
func TestOlderEpoch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	stream := 0
	serve(t, path, func(s server, _ *dataplanev1.Hello) error {
		stream++
		switch stream {
		case 1:
			if err := errors.Join(welcome(s, "e/10"), update(s, resource("a", 1)), commit(s, 1, 100, true)); err != nil {
				return err
			}
			_, err := acked(s, 1)
			return err
		case 2:
			err := errors.Join(welcome(s, "e/9"), update(s, resource("old", 1)), commit(s, 1, 200, true))
			<-s.Context().Done()
			return err
		}
		err := errors.Join(welcome(s, "e/10"), commit(s, 1, 101, true))
		<-s.Context().Done()
		return err
	})
	a := start(t, path)
	await(t, "the third stream's batch", func() bool { return a.store.Meta().Position["services"] >= 101 })
	m, keys := a.store.Meta(), a.store.Keys(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE)
	if m.Epoch != "e/10" || m.Position["services"] != 101 || !slices.Equal(keys, []string{"a"}) {
		t.Fatalf("holds %v of epoch %s at %v", keys, m.Epoch, m.Position)
	}
}

// TestRefused goes on to the calculator that takes it.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	serve(t, filepath.Join(dir, "behind"), func(server, *dataplanev1.Hello) error {
		return status.Error(codes.Unavailable, "behind")
	})
	serve(t, filepath.Join(dir, "good"), func(s server, _ *dataplanev1.Hello) error {
		err := errors.Join(welcome(s, "e/1"), commit(s, 1, 1, true))
		<-s.Context().Done()
		return err
	})
	a := start(t, filepath.Join(dir, "behind"), filepath.Join(dir, "nobody"), filepath.Join(dir, "good"))
	await(t, "in sync with the good one", func() bool { return a.Status().InSync && a.Status().Address == filepath.Join(dir, "good") })
}
