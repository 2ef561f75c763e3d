// SPDX-License-Identifier: Apache-2.0

package pipeline_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/services/calculator/internal/pipeline"
	"github.com/millrace-project/millrace/services/calculator/internal/publish"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

type harness struct {
	t         *testing.T
	publisher *publish.Publisher
	problems  *pipeline.Problems
	pipeline  *pipeline.Pipeline
	logs      *observer.ObservedLogs
	registry  *prometheus.Registry
}

func newHarness(t *testing.T) *harness { return newPacedHarness(t, pipeline.DefaultInterval) }

func newPacedHarness(t *testing.T, interval time.Duration) *harness {
	core, logs := observer.New(zap.DebugLevel)
	h := &harness{t: t, publisher: publish.NewPublisher(), logs: logs, registry: prometheus.NewRegistry()}
	h.problems = pipeline.NewProblems(zap.New(core), h.registry)
	h.pipeline = pipeline.New(h.publisher, h.problems, zap.New(core), interval)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); h.pipeline.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

func (h *harness) apply(version uint64, objects ...model.Object) {
	var changes []source.Change
	for _, object := range objects {
		changes = append(changes, source.Change{Key: object.Key(), Object: object})
	}
	h.pipeline.Apply(changes, map[string]uint64{"x": version})
}

func (h *harness) eventually(what string, condition func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("it never came about that %s", what)
		}
	}
}

func (h *harness) keysOf(node string) string {
	resources, err := h.publisher.NodeResources(node, func(kind dataplanev1.ResourceType) bool {
		return kind == dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE
	})
	if err != nil {
		return err.Error()
	}
	var keys []string
	for _, resource := range resources {
		keys = append(keys, resource.GetName().GetKey())
	}
	return strings.Join(keys, " ")
}

func node(name, address string) *model.Node {
	return &model.Node{Name: name, Addresses: []model.NodeAddress{{Type: "InternalIP", Address: address}}}
}

func service(name, address string, port int32) *model.Service {
	return &model.Service{Namespace: "default", Name: name, ClusterIP: address, Ports: []model.ServicePort{{Port: port}}}
}

func TestNothingIsPublishedBeforeTheSourceIsRead(t *testing.T) {
	h := newHarness(t)
	h.apply(1, node("n1", "10.0.0.1"))
	h.apply(2, service("a", "10.96.0.1", 80))
	h.pipeline.Reached(map[string]uint64{"y": 1})
	if h.publisher.Synced() {
		t.Fatal("a part of the source was published")
	}
	h.pipeline.Synced()
	h.eventually("it is published", h.publisher.Synced)
	if got := h.keysOf("n1"); h.publisher.Revision() != 1 || got != "default/a" {
		t.Errorf("revision %d with services %q, want 1 with default/a", h.publisher.Revision(), got)
	}
	h.eventually("the position is known", func() bool { p := h.publisher.Position(); return p["x"] == 2 && p["y"] == 1 })
}

func TestChangesAndRemovals(t *testing.T) {
	h := newHarness(t)
	h.apply(1, node("n1", "10.0.0.1"), service("a", "10.96.0.1", 80))
	h.pipeline.Synced()
	h.apply(2, service("b", "10.96.0.2", 80))
	h.eventually("b is there", func() bool { return h.keysOf("n1") == "default/a default/b" })
	h.pipeline.Apply([]source.Change{{Key: model.Key{Kind: model.KindService, Namespace: "default", Name: "a"}}}, map[string]uint64{"x": 3})
	h.eventually("a is gone", func() bool { return h.keysOf("n1") == "default/b" })
	h.pipeline.Apply([]source.Change{{Key: model.Key{Kind: model.KindNode, Name: "n1"}}}, map[string]uint64{"x": 4})
	h.eventually("n1 is gone", func() bool { return h.keysOf("n1") == publish.ErrUnknownNode.Error() })
}

// What changes nothing makes no revision, but is known to have been read.
func TestNoChangeNoRevision(t *testing.T) {
	h := newHarness(t)
	h.apply(1, node("n1", "10.0.0.1"))
	h.pipeline.Synced()
	h.eventually("it is published", h.publisher.Synced)
	h.apply(7, node("n1", "10.0.0.1"))
	h.eventually("7 is reached", func() bool { return h.publisher.Position()["x"] == 7 })
	if revision := h.publisher.Revision(); revision != 1 {
		t.Errorf("revision %d, want 1", revision)
	}
}

// A storm of changes is published in few revisions.
func TestStormIsBatched(t *testing.T) {
	const interval, changes = 200 * time.Millisecond, 2000
	h := newPacedHarness(t, interval)
	h.apply(1, node("n1", "10.0.0.1"))
	h.pipeline.Synced()
	h.eventually("it is published", h.publisher.Synced)
	start := time.Now()
	for i := range changes {
		h.apply(uint64(i+2), service("a", "10.96.0.1", int32(i%60000+1)))
		runtime.Gosched()
	}
	h.eventually("all is read", func() bool { return h.publisher.Position()["x"] == changes+1 })
	most := uint64(time.Since(start)/interval) + 2
	if revision := h.publisher.Revision(); revision > most {
		t.Errorf("%d revisions, want at most %d", revision, most)
	}
}

func TestProblemsComeAndGo(t *testing.T) {
	h := newHarness(t)
	h.apply(1, node("n1", "10.0.0.1"), service("a", "10.96.0.1", 70000))
	h.pipeline.Synced()
	file := problem.Problem{Object: model.Key{Kind: source.KindFile, Name: "x.yaml#2"}, Field: "spec", Message: "is odd"}
	h.pipeline.SetProblems("x.yaml", []problem.Problem{file})
	h.pipeline.SetProblems("x.yaml", []problem.Problem{file})
	h.eventually("both problems are listed", func() bool {
		list := h.problems.List()
		return len(list) == 2 && list[0] == file && list[1].Object.Name == "a" && list[1].Field == "spec.ports[0].port"
	})
	metric := func(kind string, count string) {
		t.Helper()
		text := "# HELP millrace_calculator_problems Problems with objects, manifests and watches, by kind.\n# TYPE millrace_calculator_problems gauge\n"
		for _, k := range []string{"ConfigMap", "EndpointSlice", "File", "Namespace", "Node", "Pod", "Service", "Settings"} {
			value := "0"
			if k == kind || kind == "" && (k == "File" || k == "Service") {
				value = count
			}
			text += "millrace_calculator_problems{kind=\"" + k + "\"} " + value + "\n"
		}
		if err := testutil.GatherAndCompare(h.registry, strings.NewReader(text), "millrace_calculator_problems"); err != nil {
			t.Error(err)
		}
	}
	metric("", "1")
	if logged := h.logs.FilterMessage("problem").All(); len(logged) != 2 {
		t.Errorf("%d problems logged, want 2, each once", len(logged))
	}
	h.apply(2, service("a", "10.96.0.1", 80))
	h.pipeline.SetProblems("x.yaml", nil)
	h.eventually("no problem is left", func() bool { return len(h.problems.List()) == 0 })
	metric("", "0")
	gone := h.logs.FilterMessage("problem is gone").All()
	if len(gone) != 2 {
		t.Fatalf("%d problems logged as gone, want 2", len(gone))
	}
}

// A metric names objects and fields with a problem, up to a bound.
func TestProblemsAreNamed(t *testing.T) {
	h := newHarness(t)
	const name = "millrace_calculator_problem"
	at := func(object, field, message string) problem.Problem {
		return problem.Problem{Object: model.Key{Kind: model.KindService, Namespace: "default", Name: object}, Field: field, Message: message}
	}
	h.pipeline.SetProblems("x", []problem.Problem{at("a", "spec", "is odd"), at("a", "spec", "is even"), at("b\xff", "", "is odd")})
	text := "# HELP " + name + " Objects and fields with a problem, each 1; the first 100 alone.\n# TYPE " + name + " gauge\n" +
		name + `{field="spec",kind="Service",name="a",namespace="default"} 1` + "\n" +
		name + `{field="",kind="Service",name="b�",namespace="default"} 1` + "\n"
	if err := testutil.GatherAndCompare(h.registry, strings.NewReader(text), name); err != nil {
		t.Error(err)
	}
	var many []problem.Problem
	for i := range 150 {
		many = append(many, at(fmt.Sprint("s", i), "", "is odd"))
	}
	for _, test := range []struct {
		problems []problem.Problem
		series   int
	}{{many, 100}, {many[:3], 3}, {nil, 0}} {
		h.pipeline.SetProblems("x", test.problems)
		if count, err := testutil.GatherAndCount(h.registry, name); err != nil || count != test.series {
			t.Errorf("%d series of %d problems (%v), want %d", count, len(test.problems), err, test.series)
		}
	}
}
