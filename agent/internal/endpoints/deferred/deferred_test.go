// SPDX-License-Identifier: Apache-2.0

package deferred

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// TestDeferred leaves deletions and takes them: what fails stays, what cannot be
// read does not.
func TestDeferred(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	if err := Take(socket, nil); err != nil {
		t.Fatalf("nothing was left: %v", err)
	}
	request := func(container string) *agentv1.DeleteEndpointRequest {
		return &agentv1.DeleteEndpointRequest{
			Attachment: &agentv1.CNIAttachment{Network: "pods", ContainerId: container, Interface: "eth0"}, Addresses: []string{"10.1.0.5"},
		}
	}
	for _, container := range []string{"a", "b", "a"} {
		if err := Leave(socket, request(container)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(Dir(socket), "x.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	seen := map[string]int{}
	err := Take(socket, func(r *agentv1.DeleteEndpointRequest) error {
		container := r.GetAttachment().GetContainerId()
		if !proto.Equal(r, request(container)) {
			t.Errorf("took %v", r)
		}
		if seen[container]++; container == "b" {
			return refused
		}
		return nil
	})
	if !errors.Is(err, refused) || seen["a"] != 1 || seen["b"] != 1 {
		t.Fatalf("%v, %v", err, seen)
	}
	if err := Take(socket, func(r *agentv1.DeleteEndpointRequest) error { seen[r.GetAttachment().GetContainerId()]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(Dir(socket)); len(left) != 0 || seen["a"] != 1 || seen["b"] != 2 {
		t.Fatalf("left %v, seen %v", left, seen)
	}
}
