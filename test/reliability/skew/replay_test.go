// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// needRelease reads which release is the previous one.
func needRelease(t *testing.T) Release {
	t.Helper()
	if release.Version == "" {
		t.Fatal(noPrevious)
	}
	return release
}

// released returns a message type as the release describes it.
func released(t *testing.T, name protoreflect.FullName) protoreflect.MessageDescriptor {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(needRelease(t).Dir, "image.binpb"))
	if err != nil {
		t.Fatal(err)
	}
	// An image is a FileDescriptorSet with more that does not matter here.
	files, err := protodesc.NewFiles(decode(t, data, &descriptorpb.FileDescriptorSet{}))
	if err != nil {
		t.Fatalf("descriptors of %s: %v", release.Version, err)
	}
	descriptor, err := files.FindDescriptorByName(name)
	if err != nil {
		t.Fatalf("%s: %v", release.Version, err)
	}
	return descriptor.(protoreflect.MessageDescriptor)
}

// calculatorAt starts the present calculator on a manifest directory and opens
// streams to it by the function it returns.
func calculatorAt(t *testing.T, dir string) func() rawStream {
	t.Helper()
	// Short: a socket's path has little room.
	sockets, err := os.MkdirTemp("", "skew-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	socket, log := filepath.Join(sockets, "calculator"), filepath.Join(sockets, "log")
	output, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	command := exec.Command(present.Calculator, "--source", "dir", "--manifests", dir, "--listen", "", "--socket", socket, "--metrics-listen", "")
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Kill() //nolint:errcheck // it may have ended
		command.Wait()         //nolint:errcheck // killed
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("calculator:\n%s", text)
		}
	})
	if err := testbed.Within(20*time.Second, func() error { _, err := os.Stat(socket); return err }); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 60*time.Second)
	return func() rawStream {
		stream, err := dialRaw(ctx, "unix://"+socket, nil)
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
}

// TestReplayAgent sends the present calculator what agents of the release sent:
// it answers with the same resources, of the same versions, and with no message
// that the release does not know.
func TestReplayAgent(t *testing.T) {
	needRelease(t)
	for _, name := range sessionNames {
		t.Run(name, func(t *testing.T) {
			s, err := readSession(sessionPath(release, name))
			if err != nil {
				t.Fatal(err)
			}
			source := t.TempDir()
			if s.entries[0].direction != manifests {
				t.Fatalf("the session begins with %c", s.entries[0].direction)
			}
			copyManifests(t, stepDir(release, string(s.entries[0].data)), source)
			r := &agentReplay{t: t, stream: calculatorAt(t, source)(), known: released(t, "millrace.dataplane.v1.SyncResponse"),
				recorded: newBatch(), revisions: map[uint64]uint64{}}
			for _, e := range s.entries[1:] {
				switch e.direction {
				case manifests:
					copyManifests(t, stepDir(release, string(e.data)), source)
				case up:
					r.send(e.data)
				case down:
					r.expect(decodeDown(t, e.data))
				}
			}
			if r.batches != s.commits(t) {
				t.Errorf("%d batches compared, %d recorded", r.batches, s.commits(t))
			}
		})
	}
}

// agentReplay is the agent of a recorded session.
type agentReplay struct {
	t        *testing.T
	stream   rawStream
	known    protoreflect.MessageDescriptor
	recorded *batch
	batches  int
	// revisions are the present ones by those that were recorded: they have
	// meaning in one process only.
	revisions map[uint64]uint64
}

// send sends what was recorded.
func (r *agentReplay) send(message []byte) {
	r.t.Helper()
	if request := decodeUp(r.t, message); request.GetAck() != nil {
		request.GetAck().ProgrammedRevision = r.revisions[request.GetAck().GetProgrammedRevision()]
		var err error
		if message, err = proto.Marshal(request); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := sendRaw(r.stream, message); err != nil {
		r.t.Fatal(err)
	}
}

// receive returns the next message, which the release must know.
func (r *agentReplay) receive() *dataplanev1.SyncResponse {
	r.t.Helper()
	data, err := receiveRaw(r.stream)
	if err != nil {
		r.t.Fatalf("the calculator ended the stream: %v", err)
	}
	message := dynamicpb.NewMessage(r.known)
	decode(r.t, data, message)
	if message.WhichOneof(r.known.Oneofs().ByName("message")) == nil {
		r.t.Fatalf("%s does not know %v", release.Version, decodeDown(r.t, data))
	}
	return decodeDown(r.t, data)
}

// expect receives what answers to a recorded message. A batch may be cut into
// other messages than it was.
func (r *agentReplay) expect(recorded *dataplanev1.SyncResponse) {
	r.t.Helper()
	switch {
	case recorded.GetWelcome() != nil:
		got := r.receive().GetWelcome()
		if got.GetEpoch() != recorded.GetWelcome().GetEpoch() || got.GetBuckets() != recorded.GetWelcome().GetBuckets() {
			r.t.Errorf("welcome %v, was %v", got, recorded.GetWelcome())
		}
	case recorded.GetHeldRequest() != nil:
		got := r.receive().GetHeldRequest()
		if !proto.Equal(got, recorded.GetHeldRequest()) {
			r.t.Fatalf("held request %v, was %v", got, recorded.GetHeldRequest())
		}
	case r.recorded.take(recorded):
		got := newBatch()
		for !got.take(r.receive()) {
		}
		got.compare(r.t, r.recorded)
		r.revisions[recorded.GetCommit().GetRevision()] = got.commit.GetRevision()
		r.batches++
		r.recorded = newBatch()
	}
}

// TestReplayCalculator lets a present agent meet what calculators of the release
// sent: it introduces itself as the release's agent did, programs everything and
// has no error.
func TestReplayCalculator(t *testing.T) {
	needRelease(t)
	stack := startCluster(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	for _, name := range sessionNames {
		t.Run(name, func(t *testing.T) {
			s, err := readSession(sessionPath(release, name))
			if err != nil {
				t.Fatal(err)
			}
			played := make(chan error, 1)
			address := serveRaw(t, stack, relayPort, func(stream rawStream) error {
				err := playCalculator(stream, s)
				select {
				case played <- err:
				default:
				}
				<-stream.Context().Done()
				return err
			})
			agent := useAgent(t, stack, 0, testbed.AgentOptions{Binaries: present, Calculators: []string{address}})
			select {
			case err = <-played:
			case <-time.After(60 * time.Second):
				t.Fatal("not in 60 s: the end of the session")
			}
			if err != nil {
				t.Fatal(err)
			}
			isClean(t, agent)
			last := ""
			for _, e := range s.entries {
				if e.direction == manifests {
					last = string(e.data)
				}
			}
			if err := agent.WaitServices(harness.Limit(t, 10*time.Second), steps(stack)[last]...); err != nil {
				t.Error(err)
			}
			if err := agent.Process.Stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// playCalculator sends the calculator's part of a session and compares the
// agent's.
func playCalculator(stream rawStream, s *session) error {
	revision := uint64(0)
	for _, e := range s.entries {
		switch e.direction {
		case down:
			response := &dataplanev1.SyncResponse{}
			if err := proto.Unmarshal(e.data, response); err != nil {
				return err
			}
			if err := sendRaw(stream, e.data); err != nil {
				return err
			}
			if commit := response.GetCommit(); commit != nil {
				revision = commit.GetRevision()
				if err := awaitAck(stream, revision); err != nil {
					return err
				}
			}
		case up:
			recorded := &dataplanev1.SyncRequest{}
			if err := proto.Unmarshal(e.data, recorded); err != nil {
				return err
			}
			if recorded.GetHello() == nil && recorded.GetHeld() == nil {
				continue // acks are awaited by revision, reports come as they like
			}
			if err := compareUp(stream, recorded); err != nil {
				return err
			}
		}
	}
	if revision == 0 {
		return fmt.Errorf("the session has no commit")
	}
	return nil
}

func receiveUp(stream rawStream) (*dataplanev1.SyncRequest, error) {
	data, err := receiveRaw(stream)
	if err != nil {
		return nil, err
	}
	request := &dataplanev1.SyncRequest{}
	return request, proto.Unmarshal(data, request)
}

// awaitAck waits until the agent has programmed a revision, and all of it.
func awaitAck(stream rawStream, revision uint64) error {
	for {
		request, err := receiveUp(stream)
		if err != nil {
			return fmt.Errorf("waiting for the ack of revision %d: %w", revision, err)
		}
		if ack := request.GetAck(); ack.GetProgrammedRevision() >= revision {
			if ack.GetErrorCount() != 0 {
				return fmt.Errorf("revision %d: %v", revision, ack.GetErrors())
			}
			return nil
		}
	}
}

// compareUp receives the agent's next hello or held and compares it.
func compareUp(stream rawStream, recorded *dataplanev1.SyncRequest) error {
	for {
		request, err := receiveUp(stream)
		if err != nil {
			return err
		}
		switch {
		case request.GetReport() != nil || request.GetAck() != nil:
			continue
		case recorded.GetHello() != nil:
			return compareHello(request.GetHello(), recorded.GetHello())
		default:
			return compareHeld(request.GetHeld(), recorded.GetHeld())
		}
	}
}

func compareHello(got, recorded *dataplanev1.Hello) error {
	for _, support := range recorded.GetTypes() {
		if !slices.ContainsFunc(got.GetTypes(), func(s *dataplanev1.TypeSupport) bool {
			return s.GetType() == support.GetType() && s.GetSchema() >= support.GetSchema()
		}) {
			return fmt.Errorf("hello %v announces %v no more", got.GetTypes(), support)
		}
	}
	if got.GetNodeName() != recorded.GetNodeName() || got.GetEpoch() != recorded.GetEpoch() ||
		!proto.Equal(got.GetPosition(), recorded.GetPosition()) || !slices.Equal(got.GetBucketDigests(), recorded.GetBucketDigests()) {
		return fmt.Errorf("hello\n%v, was\n%v", got, recorded)
	}
	return nil
}

func compareHeld(got, recorded *dataplanev1.Held) error {
	byName := func(a, b *dataplanev1.HeldResource) int {
		return strings.Compare(nameOf(a.GetName()), nameOf(b.GetName()))
	}
	slices.SortFunc(got.GetResources(), byName)
	slices.SortFunc(recorded.GetResources(), byName)
	if !proto.Equal(got, recorded) {
		return fmt.Errorf("held\n%v, was\n%v", got, recorded)
	}
	return nil
}
