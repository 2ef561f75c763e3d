// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// sink keeps what it is given.
type sink struct {
	objects  map[model.Key]model.Object
	triggers map[model.Key]time.Time
	included map[string]uint64
	reached  map[string]uint64
	problems map[string][]problem.Problem
	synced   int
}

func (s *sink) Apply(changes []source.Change, position map[string]uint64) {
	for _, change := range changes {
		s.triggers[change.Key] = change.Trigger
		if change.Object == nil {
			delete(s.objects, change.Key)
		} else {
			s.objects[change.Key] = change.Object
		}
	}
	maps.Copy(s.included, position)
}

func (s *sink) Reached(position map[string]uint64) { maps.Copy(s.reached, position) }

func (s *sink) Synced() { s.synced++ }

func (s *sink) SetProblems(part string, problems []problem.Problem) { s.problems[part] = problems }

func (s *sink) names() string {
	var list []string
	for key := range s.objects {
		list = append(list, key.Name)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func testStore(k kind) (*store, *sink) {
	s := &Source{host: "https://server", log: zap.NewNop(), unsynced: map[string]bool{identity: true, k.plural: true}, failed: make(chan struct{})}
	out := &sink{objects: map[model.Key]model.Object{}, triggers: map[model.Key]time.Time{}, included: map[string]uint64{},
		reached: map[string]uint64{}, problems: map[string][]problem.Problem{}}
	s.sink = out
	return newStore(s, out, k, k), out
}

var (
	serviceKind   = kind{plural: "services", kind: model.KindService}
	sliceKind     = kind{plural: "endpointslices", kind: model.KindEndpointSlice}
	namespaceKind = kind{plural: "namespaces", kind: model.KindNamespace}
)

func service(name, version string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: version}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreFollowsTheWatch(t *testing.T) {
	st, out := testStore(serviceKind)
	must(t, st.Replace([]any{service("a", "5"), service("b", "7")}, "20"))
	if out.names() != "a b" || out.included["services"] != 20 {
		t.Errorf("after the list: %s at %d, want a b at 20", out.names(), out.included["services"])
	}
	must(t, st.Add(service("c", "21")))
	must(t, st.Update(service("a", "22")))
	must(t, st.Delete(service("b", "23")))
	if out.names() != "a c" || out.included["services"] != 23 {
		t.Errorf("after events: %s at %d, want a c at 23", out.names(), out.included["services"])
	}
	must(t, st.Bookmark("40"))
	if out.included["services"] != 23 || out.reached["services"] != 40 {
		t.Errorf("after a bookmark: included %d, reached %d, want 23 and 40", out.included["services"], out.reached["services"])
	}
	// The watch was lost for long: what is not in the new list has gone.
	must(t, st.Replace([]any{service("c", "21"), service("d", "50")}, "55"))
	if out.names() != "c d" || out.included["services"] != 55 {
		t.Errorf("after the second list: %s at %d, want c d at 55", out.names(), out.included["services"])
	}
}

// A list made of a stream is trimmed before it gets to the store.
func TestTrimmedObjectsAreTaken(t *testing.T) {
	st, out := testStore(serviceKind)
	object, err := st.Transformer()(service("a", "5"))
	must(t, err)
	if _, ok := object.(*corev1.Service); ok {
		t.Error("the object of the API is kept")
	}
	must(t, st.Replace([]any{object}, "6"))
	if out.names() != "a" {
		t.Errorf("objects %s, want a", out.names())
	}
}

func TestUnreadableVersionIsAProblem(t *testing.T) {
	st, out := testStore(serviceKind)
	if err := st.Add(service("a", "abc")); err == nil {
		t.Error("a resource version that is no number was accepted")
	}
	if got := fmt.Sprint(out.problems["services"]); !strings.Contains(got, `Service default/a`) || !strings.Contains(got, `"abc"`) {
		t.Errorf("problems %s", got)
	}
}

func TestTriggerTimes(t *testing.T) {
	st, out := testStore(sliceKind)
	key := model.Key{Kind: model.KindEndpointSlice, Namespace: "default", Name: "a"}
	slice := func(version string, trigger time.Time) *discoveryv1.EndpointSlice {
		object := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", ResourceVersion: version}}
		if !trigger.IsZero() {
			object.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: trigger.Format(time.RFC3339Nano)}
		}
		return object
	}
	now := time.Now().Round(0)
	tests := []struct {
		name    string
		trigger time.Time
		want    time.Time
	}{
		{"new", now.Add(-time.Second), now.Add(-time.Second)},
		{"left from the change before", now.Add(-time.Second), time.Time{}},
		{"newer", now, now},
		{"none", time.Time{}, time.Time{}},
		{"from long ago", now.Add(-time.Hour), time.Time{}},
	}
	for i, test := range tests {
		must(t, st.Update(slice(fmt.Sprint(i+1), test.trigger)))
		if got := out.triggers[key]; !got.Equal(test.want) {
			t.Errorf("%s: trigger %v, want %v", test.name, got, test.want)
		}
	}
}

func systemNamespace(uid, counter string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: metav1.NamespaceSystem, UID: types.UID(uid), ResourceVersion: "3"}}
	if counter != "" {
		n.Annotations = map[string]string{EpochAnnotation: counter}
	}
	return n
}

// Nothing is served before it is known which cluster it is.
func TestSyncedWaitsForTheCluster(t *testing.T) {
	st, out := testStore(namespaceKind)
	must(t, st.Replace(nil, "2"))
	if out.synced != 0 {
		t.Error("synced without knowing the cluster")
	}
	must(t, st.Add(systemNamespace("u1", "")))
	if out.synced != 1 || st.source.Epoch() != "u1/0" {
		t.Errorf("synced %d times, epoch %q, want once, u1/0", out.synced, st.source.Epoch())
	}
	must(t, st.Update(systemNamespace("u1", "")))
	must(t, st.Replace([]any{systemNamespace("u1", "")}, "4"))
	if out.synced != 1 {
		t.Errorf("synced %d times", out.synced)
	}
}

func TestRaisedEpochEndsTheSource(t *testing.T) {
	st, _ := testStore(namespaceKind)
	must(t, st.Add(systemNamespace("u1", "")))
	if err := st.Update(systemNamespace("u1", "1")); err == nil {
		t.Error("the change is taken, though what else there is may be set back")
	}
	select {
	case <-st.source.failed:
		if !strings.Contains(st.source.failure.Error(), `"u1/0"`) || !strings.Contains(st.source.failure.Error(), `"u1/1"`) {
			t.Errorf("failure %v", st.source.failure)
		}
	default:
		t.Error("the source goes on")
	}
}

func TestFailuresAreProblemsUntilTheyEnd(t *testing.T) {
	k := serviceKind
	var answer error
	k.list = func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
		if options.LabelSelector != leftToOthers {
			t.Errorf("selector %q", options.LabelSelector)
		}
		return &corev1.ServiceList{}, answer
	}
	k.label = leftToOthers
	st, out := testStore(k)
	answer = apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no rule"))
	if _, err := st.listOnce(context.Background(), metav1.ListOptions{}); err == nil {
		t.Error("no error")
	}
	got := fmt.Sprint(out.problems["services"])
	for _, want := range []string{"Watch services", "https://server", "forbidden", "grant list and watch"} {
		if !strings.Contains(got, want) {
			t.Errorf("problems %s do not contain %q", got, want)
		}
	}
	answer = nil
	if _, err := st.listOnce(context.Background(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	must(t, st.Replace(nil, "1"))
	if problems := out.problems["services"]; len(problems) != 0 {
		t.Errorf("problems %v after success", problems)
	}
}
