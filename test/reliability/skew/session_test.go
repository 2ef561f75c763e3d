// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// direction tells what an entry of a session is.
type direction byte

const (
	// up is a message of the agent, down one of the calculator.
	up   direction = '<'
	down direction = '>'
	// manifests is when the calculator's source became what the directory of
	// this name holds.
	manifests direction = '#'
)

// entry is a message of a session, or a change of the calculator's source.
type entry struct {
	direction direction
	data      []byte
}

// session is what passed between an agent and a calculator of a release, in
// order.
type session struct {
	mu      sync.Mutex
	entries []entry
}

func (s *session) add(d direction, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, entry{d, append([]byte(nil), data...)})
}

// commits is how many batches the session has.
func (s *session) commits(t *testing.T) int {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.entries {
		if e.direction == down && decodeDown(t, e.data).GetCommit() != nil {
			n++
		}
	}
	return n
}

// write writes entries as a direction, a length and the bytes each.
func (s *session) write(path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var file []byte
	for _, e := range s.entries {
		file = append(file, byte(e.direction))
		file = binary.AppendUvarint(file, uint64(len(e.data)))
		file = append(file, e.data...)
	}
	return os.WriteFile(path, file, 0o644)
}

func readSession(path string) (*session, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	s := &session{}
	for len(file) > 0 {
		d := direction(file[0])
		length, n := binary.Uvarint(file[1:])
		if n <= 0 || uint64(len(file)-1-n) < length {
			return nil, fmt.Errorf("%s: %w", path, errors.New("cut off"))
		}
		s.add(d, file[1+n:1+n+int(length)])
		file = file[1+n+int(length):]
	}
	if len(s.entries) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return s, nil
}

// sessionNames are the sessions of a release: an agent that holds nothing, and
// one that comes back after the cluster changed.
var sessionNames = []string{"join", "resume"}

func sessionPath(release Release, name string) string {
	return filepath.Join(release.Dir, "sessions", name+".bin")
}

// stepDir has the manifests of a step.
func stepDir(release Release, step string) string {
	return filepath.Join(release.Dir, "sessions", step)
}

// copyManifests makes to hold the manifests of from and no others. Each is
// there at once or not at all.
func copyManifests(t *testing.T, from, to string) {
	t.Helper()
	wanted := map[string]bool{}
	for _, file := range yamlFiles(t, from) {
		wanted[filepath.Base(file)] = true
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(to, filepath.Base(file))
		if err := errors.Join(os.WriteFile(target+".new", data, 0o644), os.Rename(target+".new", target)); err != nil {
			t.Fatal(err)
		}
	}
	if len(wanted) == 0 {
		t.Fatalf("no manifests in %s", from)
	}
	for _, file := range yamlFiles(t, to) {
		if !wanted[filepath.Base(file)] {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func yamlFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// batch is what the messages up to a commit amount to.
type batch struct {
	upserts  map[string]*dataplanev1.Resource
	removals map[string]bool
	commit   *dataplanev1.Commit
}

func newBatch() *batch {
	return &batch{upserts: map[string]*dataplanev1.Resource{}, removals: map[string]bool{}}
}

func nameOf(n *dataplanev1.ResourceName) string {
	return fmt.Sprintf("%s %s", strings.TrimPrefix(n.GetType().String(), "RESOURCE_TYPE_"), n.GetKey())
}

// take takes in a message and tells whether it was the last.
func (b *batch) take(response *dataplanev1.SyncResponse) bool {
	for _, resource := range response.GetUpdate().GetUpserts() {
		b.upserts[nameOf(resource.GetName())] = resource
	}
	for _, name := range response.GetUpdate().GetRemovals() {
		b.removals[nameOf(name)] = true
	}
	b.commit = response.GetCommit()
	return b.commit != nil
}

// compare reports what of a batch is not as it was recorded.
func (b *batch) compare(t *testing.T, recorded *batch) {
	t.Helper()
	for name, want := range recorded.upserts {
		if got := b.upserts[name]; !proto.Equal(got, want) {
			t.Errorf("%s is\n%v, was\n%v", name, got, want)
		}
	}
	for name := range b.upserts {
		if recorded.upserts[name] == nil {
			t.Errorf("%s is sent and was not", name)
		}
	}
	for name := range recorded.removals {
		if !b.removals[name] {
			t.Errorf("%s is not removed any more", name)
		}
	}
	for name := range b.removals {
		if !recorded.removals[name] {
			t.Errorf("%s is removed and was not", name)
		}
	}
	if b.commit.GetInSync() != recorded.commit.GetInSync() || b.commit.GetDigest() != recorded.commit.GetDigest() {
		t.Errorf("commit %v, was %v", b.commit, recorded.commit)
	}
}

func decode[M proto.Message](t *testing.T, data []byte, message M) M {
	t.Helper()
	if err := proto.Unmarshal(data, message); err != nil {
		t.Fatalf("decode %T: %v", message, err)
	}
	return message
}

func decodeUp(t *testing.T, data []byte) *dataplanev1.SyncRequest {
	t.Helper()
	return decode(t, data, &dataplanev1.SyncRequest{})
}

func decodeDown(t *testing.T, data []byte) *dataplanev1.SyncResponse {
	t.Helper()
	return decode(t, data, &dataplanev1.SyncResponse{})
}
