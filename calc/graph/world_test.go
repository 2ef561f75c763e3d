// SPDX-License-Identifier: Apache-2.0

package graph_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/canonical"
	"github.com/millrace-project/millrace/calc/graph"
	"github.com/millrace-project/millrace/calc/model"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// world is a state of the input.
type world map[model.Key]model.Object

func newWorld(objects ...model.Object) world {
	w := world{}
	for _, object := range objects {
		w[object.Key()] = object
	}
	return w
}

func (w world) keys() []model.Key {
	return slices.SortedFunc(maps.Keys(w), model.Key.Compare)
}

func (w world) apply(changes []graph.Change) {
	for _, change := range changes {
		if change.Object == nil {
			delete(w, change.Key)
		} else {
			w[change.Object.Key()] = change.Object
		}
	}
}

// changesTo gives what leads from one world to another, sorted by key.
func (w world) changesTo(next world) []graph.Change {
	var changes []graph.Change
	for _, key := range w.keys() {
		if next[key] == nil {
			changes = append(changes, graph.Gone(key))
		}
	}
	for _, key := range next.keys() {
		if w[key] != next[key] {
			changes = append(changes, graph.Set(next[key]))
		}
	}
	return changes
}

// fresh computes a world from scratch.
func fresh(w world) *graph.Graph {
	g := graph.New()
	for _, key := range w.keys() {
		g.Upsert(w[key])
	}
	g.Flush()
	return g
}

var deterministic = proto.MarshalOptions{Deterministic: true}

func marshal(t testing.TB, m proto.Message) string {
	t.Helper()
	encoded, err := deterministic.Marshal(m)
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	return string(encoded)
}

// dump writes down everything that a graph holds, bytes and versions.
func dump(t testing.TB, g *graph.Graph) []string {
	t.Helper()
	var lines []string
	for _, a := range g.Audiences() {
		for _, resource := range g.Resources(a) {
			if got := canonical.Version(resource); got != resource.GetVersion() {
				t.Errorf("%v: version %x, content has %x", resource.GetName(), resource.GetVersion(), got)
			}
			lines = append(lines, resourceLine(t, a, resource))
		}
	}
	for _, member := range g.Members() {
		lines = append(lines, fmt.Sprint("member ", member.Node, member.Audiences))
	}
	for _, p := range g.Problems() {
		lines = append(lines, "problem "+p.String())
	}
	return lines
}

func resourceLine(t testing.TB, a audience.Audience, resource *dataplanev1.Resource) string {
	return fmt.Sprintf("%s %s %x %x", a, nameText(nameOf(resource.GetName())), resource.GetVersion(), marshal(t, resource))
}

func nameOf(name *dataplanev1.ResourceName) graph.Name {
	return graph.Name{Type: name.GetType(), Key: name.GetKey()}
}

func nameText(name graph.Name) string {
	return strings.TrimPrefix(name.Type.String(), "RESOURCE_TYPE_") + " " + name.Key
}

// difference gives the lines that are in one list only.
func difference(got, want []string) string {
	var text strings.Builder
	for _, line := range got {
		if !slices.Contains(want, line) {
			fmt.Fprintln(&text, "+", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			fmt.Fprintln(&text, "-", line)
		}
	}
	if text.Len() == 0 && !slices.Equal(got, want) {
		return "same lines in another order or number"
	}
	return text.String()
}
