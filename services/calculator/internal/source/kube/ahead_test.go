// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

var _ source.Overtaken = (*Source)(nil)

// server stands in for the API server: it is at a version and has events.
type server struct {
	latest uint64
	events []watch.Event
	opened []metav1.ListOptions
	last   *watch.FakeWatcher
}

func (s *server) kind() kind {
	k := serviceKind
	k.list = func(context.Context, metav1.ListOptions) (runtime.Object, error) { return &corev1.ServiceList{}, nil }
	k.one = func(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
		if options.ResourceVersion != "" {
			return nil, fmt.Errorf("resourceVersion %q: a cache may answer that", options.ResourceVersion)
		}
		return &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(s.latest, 10)}}, nil
	}
	k.watch = func(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
		s.opened = append(s.opened, options)
		s.last = watch.NewFakeWithChanSize(len(s.events), false)
		for _, event := range s.events {
			s.last.Action(event.Type, event.Object)
		}
		return s.last, nil
	}
	return k
}

func event(kind watch.EventType, version string) watch.Event {
	return watch.Event{Type: kind, Object: service("a", version)}
}

// listedAt is a store that has read a list of that version.
func listedAt(t *testing.T, s *server, version string) (*store, *sink) {
	t.Helper()
	st, out := testStore(s.kind())
	st.source.client, st.source.probes = &connection{}, &connection{}
	st.source.stores = []*store{st}
	must(t, st.Replace([]any{service("a", "5")}, version))
	return st, out
}

// Nothing happened after the replica's position, which the bookmark proves.
func TestBookmarkProvesThePosition(t *testing.T) {
	s := &server{latest: 35, events: []watch.Event{event(watch.Bookmark, "34")}}
	st, out := listedAt(t, s, "20")
	must(t, st.catchUp(context.Background(), question{node: "n1", want: 30}))
	if out.reached["services"] != 34 || out.included["services"] != 20 {
		t.Errorf("reached %d, included %d, want 34 and 20", out.reached["services"], out.included["services"])
	}
	if len(s.opened) != 1 || s.opened[0].ResourceVersion != "20" || !s.opened[0].AllowWatchBookmarks {
		t.Errorf("watched %+v, want one watch with bookmarks from 20", s.opened)
	}
	if !s.last.IsStopped() {
		t.Error("the second watch stays open")
	}
	// Proven is proven: an older bookmark of the first watch changes nothing.
	must(t, st.Bookmark("25"))
	if out.reached["services"] != 34 {
		t.Errorf("reached %d after an older bookmark", out.reached["services"])
	}
}

// What the second watch tells has to arrive by the first before the bookmark
// counts: a deletion, say, is not in what is handed over yet.
func TestProofWaitsForWhatHappened(t *testing.T) {
	s := &server{latest: 35, events: []watch.Event{event(watch.Modified, "22"), event(watch.Deleted, "25"), event(watch.Bookmark, "34")}}
	st, out := listedAt(t, s, "20")
	done := make(chan error)
	go func() { done <- st.catchUp(context.Background(), question{node: "n1", want: 30}) }()
	deadline := time.Now().Add(10 * time.Second)
	for st.mu.Lock(); st.proof.reached == 0 && time.Now().Before(deadline); st.mu.Lock() {
		st.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	st.mu.Unlock()
	must(t, st.Update(service("a", "22")))
	if out.reached["services"] != 0 {
		t.Fatalf("reached %d before the deletion has arrived", out.reached["services"])
	}
	must(t, st.Delete(service("a", "25")))
	must(t, <-done)
	if out.reached["services"] != 34 || out.names() != "" {
		t.Errorf("reached %d with %q, want 34 with nothing", out.reached["services"], out.names())
	}
}

// A first watch that does not bring what happened is cut, but not again and
// again.
func TestSilentWatchIsCut(t *testing.T) {
	s := &server{latest: 35, events: []watch.Event{event(watch.Deleted, "25"), event(watch.Bookmark, "34")}}
	st, out := listedAt(t, s, "20")
	must(t, st.catchUp(context.Background(), question{node: "n1", want: 30}))
	if st.source.lastCut.IsZero() || out.reached["services"] != 0 {
		t.Errorf("cut at %v, reached %d; want it cut and nothing reached", st.source.lastCut, out.reached["services"])
	}
	if st.source.cutWatches() {
		t.Error("cut again at once")
	}
}

// The agent knows of a version that the API server has not come to: only an
// operator can tell whether that is meant.
func TestAgentAheadOfTheServerIsAProblem(t *testing.T) {
	s := &server{latest: 25}
	st, out := listedAt(t, s, "20")
	st.source.epoch, st.source.identity, st.source.counter = "u1/4", "u1", 4
	must(t, st.catchUp(context.Background(), question{node: "n1", want: 30}))
	got := fmt.Sprint(out.problems[aheadPart])
	for _, want := range []string{"Namespace kube-system", epochField, `"n1"`, "services", "30", "25", "millrace.io/epoch=5"} {
		if !strings.Contains(got, want) {
			t.Errorf("problem %s does not contain %q", got, want)
		}
	}
	if out.reached["services"] != 0 || len(s.opened) != 0 || st.source.hasFailed() {
		t.Errorf("reached %v, watched %d times, failed %v; want the process to go on as it is", out.reached, len(s.opened), st.source.hasFailed())
	}
	if advice := st.source.Ahead("n2", "u1/4", map[string]uint64{"services": 30}); !strings.Contains(advice, "millrace.io/epoch=5") {
		t.Errorf("advice %q", advice)
	}
	// An agent that has heard of a higher epoch asks for one higher still.
	st.source.Ahead("n3", "u1/9", nil)
	if got := fmt.Sprint(out.problems[aheadPart]); !strings.Contains(got, "millrace.io/epoch=10") || !strings.Contains(got, `"n3"`) {
		t.Errorf("problem %s, want one about n3 and epoch 10", got)
	}
}

// A watch from a version that the API server has not come to would say nothing
// until it has.
func TestWatchFromTheFutureEndsTheSource(t *testing.T) {
	s := &server{latest: 15}
	st, out := listedAt(t, s, "20")
	if _, err := st.watchOnce(context.Background(), metav1.ListOptions{ResourceVersion: "20"}); err == nil || !strings.Contains(err.Error(), "set back") {
		t.Errorf("error %v", err)
	}
	if !st.source.hasFailed() || !s.last.IsStopped() || !strings.Contains(st.source.failure.Error(), "millrace.io/epoch=1") {
		t.Errorf("failure %v, watch stopped %v", st.source.failure, s.last.IsStopped())
	}
	// Nothing of the state that was set back gets in.
	if err := st.Replace([]any{service("old", "15")}, "15"); err == nil || out.names() != "a" {
		t.Errorf("error %v, objects %q, want an error and a", err, out.names())
	}
	s.latest = 20
	st, _ = listedAt(t, s, "20")
	if _, err := st.watchOnce(context.Background(), metav1.ListOptions{ResourceVersion: "20"}); err != nil {
		t.Error(err)
	}
}

// A watch that ends before its time may have been the last one of an API
// server whose state was set back and has gone on since.
func TestInterruptedWatchIsNotResumed(t *testing.T) {
	s := &server{latest: 30}
	st, _ := listedAt(t, s, "20")
	open := func(timeout int64) error {
		_, err := st.watchOnce(context.Background(), metav1.ListOptions{ResourceVersion: "20", TimeoutSeconds: &timeout})
		return err
	}
	must(t, open(0)) // after a list a watch follows in any case
	must(t, open(300))
	for range 2 {
		if err := open(300); !apierrors.IsResourceExpired(err) {
			t.Errorf("error %v after a watch that was to last five minutes, want one that leads to a list", err)
		}
	}
	list := func() {
		t.Helper()
		if _, err := st.listOnce(context.Background(), metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		must(t, st.Replace([]any{service("a", "5")}, "25"))
	}
	list()
	must(t, open(0))
	fail := errors.New("connection refused")
	working := st.kind.watch
	st.kind.watch = func(context.Context, metav1.ListOptions) (watch.Interface, error) { return nil, fail }
	if err := open(0); !errors.Is(err, fail) {
		t.Errorf("error %v", err)
	}
	st.kind.watch = working
	if err := open(0); !apierrors.IsResourceExpired(err) {
		t.Errorf("error %v after the API server was away, want one that leads to a list", err)
	}
	// A list that is the beginning of a watch is no list before the next one.
	all, long := true, int64(300)
	if _, err := st.watchOnce(context.Background(), metav1.ListOptions{SendInitialEvents: &all, TimeoutSeconds: &long}); err != nil {
		t.Fatal(err)
	}
	must(t, st.Replace([]any{service("a", "5")}, "26"))
	if err := open(0); !apierrors.IsResourceExpired(err) {
		t.Errorf("error %v after a watch with its list that was to last five minutes, want one that leads to a list", err)
	}
}

func TestOlderListAndEventAreRefused(t *testing.T) {
	// A cache that is late: listing again will do.
	s := &server{latest: 21}
	st, out := listedAt(t, s, "20")
	if err := st.Replace(nil, "18"); err == nil || st.source.hasFailed() || out.names() != "a" {
		t.Errorf("error %v, failure %v, objects %q", err, st.source.failure, out.names())
	}
	s.latest = 18
	if err := st.Replace(nil, "18"); err == nil || !st.source.hasFailed() || out.names() != "a" {
		t.Errorf("error %v, failed %v, objects %q", err, st.source.hasFailed(), out.names())
	}
	st, out = listedAt(t, s, "20")
	if err := st.Add(service("b", "19")); err == nil || !st.source.hasFailed() || out.names() != "a" {
		t.Errorf("error %v, failed %v, objects %q", err, st.source.hasFailed(), out.names())
	}
	st, out = listedAt(t, s, "20")
	if err := st.Delete(service("a", "19")); err == nil || !st.source.hasFailed() || out.names() != "a" {
		t.Errorf("error %v, failed %v, objects %q", err, st.source.hasFailed(), out.names())
	}
}

func TestBadEpochsAreProblems(t *testing.T) {
	st, out := testStore(namespaceKind)
	must(t, st.Add(systemNamespace("u1", "3")))
	for _, bad := range []string{"two", "2", "-1", ""} {
		must(t, st.Update(systemNamespace("u1", bad)))
		got := fmt.Sprint(out.problems[epochPart])
		if !strings.Contains(got, epochField) || !strings.Contains(got, "millrace.io/epoch=4") {
			t.Errorf("epoch %q: problems %s", bad, got)
		}
	}
	must(t, st.Update(systemNamespace("u1", "3")))
	if len(out.problems[epochPart]) != 0 || st.source.Epoch() != "u1/3" || st.source.hasFailed() {
		t.Errorf("problems %v, epoch %q, failure %v", out.problems[epochPart], st.source.Epoch(), st.source.failure)
	}
}
