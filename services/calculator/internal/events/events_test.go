// SPDX-License-Identifier: Apache-2.0

package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// scene is an API server with problems, and recorders at it.
type scene struct {
	client   *fake.Clientset
	problems []problem.Problem
	nodes    map[string][]string
}

func newScene(objects ...runtime.Object) *scene { return &scene{client: fake.NewClientset(objects...)} }

func (s *scene) recorder(instance string) *Recorder {
	return newRecorder(Options{Instance: instance, Log: zap.NewNop(), Registry: prometheus.NewRegistry(),
		Problems: func() []problem.Problem { return s.problems }, Nodes: func() map[string][]string { return s.nodes }}, s.client)
}

func (s *scene) events(t *testing.T) []eventsv1.Event {
	t.Helper()
	list, err := s.client.EventsV1().Events(metav1.NamespaceAll).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

func (s *scene) forget(t *testing.T) {
	t.Helper()
	for _, e := range s.events(t) {
		if err := s.client.EventsV1().Events(e.Namespace).Delete(context.Background(), e.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func webProblem(message string) problem.Problem {
	return problem.Problem{Object: model.Key{Kind: model.KindService, Namespace: "shop", Name: "web"}, Field: "spec.ports[0].port", Message: message}
}

func web() *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u1"}}
}

// TestEvents tells problems of objects and of nodes once, whichever calculator is
// first, and again when the API server has forgotten them.
func TestEvents(t *testing.T) {
	ctx, now := context.Background(), time.Now()
	s := newScene(web(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u2"}})
	s.problems = []problem.Problem{webProblem("70000 is no port"),
		{Object: model.Key{Kind: "Watch", Name: "services"}, Message: "nobody can describe this"},
		{Object: model.Key{Kind: model.KindService, Namespace: "shop", Name: "gone"}, Message: "it is being deleted"}}
	s.nodes = map[string][]string{"n1": {"the agent lacks the capability CAP_BPF"}}
	one, two := s.recorder("c1"), s.recorder("c2")
	one.tell(ctx, now)
	two.tell(ctx, now)
	one.tell(ctx, now.Add(time.Second))
	got := map[string]eventsv1.Event{}
	for _, e := range s.events(t) {
		got[e.Regarding.Kind] = e
	}
	if len(got) != 2 || len(s.events(t)) != 2 {
		t.Fatalf("events: %v", s.events(t))
	}
	e := got["Service"]
	if e.Namespace != "shop" || !strings.HasPrefix(e.Name, "web.") || e.Regarding.UID != "u1" || e.Regarding.APIVersion != "v1" ||
		e.Reason != ReasonObject || e.Note != "spec.ports[0].port: 70000 is no port" || e.Type != corev1.EventTypeWarning ||
		e.Action == "" || e.EventTime.IsZero() || e.ReportingController == "" || e.ReportingInstance != "c1" {
		t.Errorf("of the service: %+v", e)
	}
	e = got["Node"]
	if e.Namespace != "default" || e.Regarding.UID != "u2" || e.Regarding.Namespace != "" || e.Reason != ReasonNode || !strings.Contains(e.Note, "CAP_BPF") {
		t.Errorf("of the node: %+v", e)
	}

	s.forget(t)
	one.tell(ctx, now.Add(repeatEvery/2))
	if left := s.events(t); len(left) != 0 {
		t.Errorf("told again too soon: %v", left)
	}
	one.tell(ctx, now.Add(repeatEvery+time.Second))
	if again := s.events(t); len(again) != 2 {
		t.Errorf("not told again: %v", again)
	}

	// Mended and broken again, it is told at once.
	s.forget(t)
	s.problems, s.nodes = nil, nil
	one.tell(ctx, now.Add(repeatEvery+2*time.Second))
	s.problems = []problem.Problem{webProblem("70000 is no port")}
	one.tell(ctx, now.Add(repeatEvery+3*time.Second))
	if again := s.events(t); len(again) != 1 {
		t.Errorf("broken again: %v", again)
	}
}

// TestEventsAreBounded has far more problems than may be told at once: they are
// told one after the other.
func TestEventsAreBounded(t *testing.T) {
	ctx, now := context.Background(), time.Now()
	s := newScene(web())
	const all = burst + 30
	for i := range all {
		s.problems = append(s.problems, webProblem(fmt.Sprintf("problem %d", i)))
	}
	r := s.recorder("c1")
	r.tell(ctx, now)
	if n := len(s.events(t)); n != burst {
		t.Errorf("%d at once, want %d", n, burst)
	}
	r.tell(ctx, now.Add(5*time.Second))
	if n := len(s.events(t)); n != burst+5*perSecond {
		t.Errorf("%d after 5 s, want %d", n, burst+5*perSecond)
	}
	r.tell(ctx, now.Add(time.Minute))
	if n := len(s.events(t)); n != all {
		t.Errorf("%d after a minute, want %d", n, all)
	}
}

// TestEventsFail is refused by the API server: one object's Events do not keep
// others' from being told, and each is tried again.
func TestEventsFail(t *testing.T) {
	ctx, now := context.Background(), time.Now()
	s := newScene(web(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	s.problems = []problem.Problem{webProblem("a")}
	s.nodes = map[string][]string{"n1": {"b"}}
	var failure error = apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "n1", errors.New("no"))
	s.client.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) { return failure != nil, nil, failure })
	r := s.recorder("c1")
	r.tell(ctx, now)
	if got := s.events(t); len(got) != 1 || got[0].Regarding.Kind != "Service" {
		t.Errorf("events: %v", got)
	}
	if !strings.Contains(r.failing, "forbidden") {
		t.Errorf("failing: %q", r.failing)
	}
	failure = nil
	r.tell(ctx, now.Add(time.Minute))
	if got := s.events(t); len(got) != 2 || r.failing != "" {
		t.Errorf("events: %v; failing: %q", got, r.failing)
	}
}

// TestNotes cuts what is too long for the API, never within a character.
func TestNotes(t *testing.T) {
	for _, text := range []string{strings.Repeat("a", maxNote), strings.Repeat("a", 5000), strings.Repeat("\u00e9", 5000), "a" + strings.Repeat("\u20ac", 5000)} {
		got := bounded(text)
		if len(got) > maxNote || !utf8.ValidString(got) || len(got) < maxNote-6 {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
	}
	long := Told{Object: model.Key{Kind: model.KindPod, Namespace: "x", Name: strings.Repeat("a", maxName-1) + "." + strings.Repeat("b", 40)}}
	if name := eventName(long, ""); len(name) > 253 || strings.Contains(name, "..") {
		t.Errorf("name %s", name)
	}
}
