// SPDX-License-Identifier: Apache-2.0

// Package events tells problems as Events on the objects that they are about, so
// that `kubectl describe` shows them where they are looked for.
//
// Every calculator knows the same problems and there is no leader. So an Event's
// name is made from what it says: whoever is second finds it there. It is made
// again while its problem lasts, which does nothing until the API server has
// forgotten it.
package events

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
)

// Reasons of Events.
const (
	// ReasonObject: part of the object is wrong.
	ReasonObject = "MillraceProblem"
	// ReasonNode: the agent of the node has found something wrong.
	ReasonNode = "MillraceNodeProblem"
)

// Bounds of what problems may cost the API server.
const (
	// lookEvery is how often the problems are looked at.
	lookEvery = 5 * time.Second
	// repeatEvery is how often an Event is made again, below the hour after which
	// API servers forget one by default.
	repeatEvery = 20 * time.Minute
	// perSecond and burst bound the Events that are tried: a cluster full of
	// problems is told slowly.
	perSecond = 2
	burst     = 50
	// maxNote is the API's own limit of a note, in bytes.
	maxNote = 1024
	// maxName is what is left of an object's name in that of its Event.
	maxName = 200
)

// Told is one thing to tell.
type Told struct {
	Object model.Key
	Reason string
	Note   string
}

// Options are what a Recorder needs.
type Options struct {
	Config *rest.Config
	// Instance is the calculator that tells.
	Instance string
	// Problems are those of objects, Nodes what agents that are connected here
	// report, by node.
	Problems func() []problem.Problem
	Nodes    func() map[string][]string
	Log      *zap.Logger
	Registry prometheus.Registerer
}

// Recorder makes Events.
type Recorder struct {
	Options
	client  kubernetes.Interface
	limit   *rate.Limiter
	results *prometheus.CounterVec
	// told has when each thing that is still wrong was told last.
	told map[Told]time.Time
	// failing is the last failure, that is logged once.
	failing string
}

// New returns a recorder that makes Events at the API server.
func New(o Options) (*Recorder, error) {
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("making a client for Events: %w", err)
	}
	return newRecorder(o, client), nil
}

func newRecorder(o Options, client kubernetes.Interface) *Recorder {
	r := &Recorder{Options: o, client: client, limit: rate.NewLimiter(perSecond, burst), told: map[Told]time.Time{},
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "millrace", Subsystem: "calculator", Name: "events_total",
			Help: "Events about problems, by what became of them: made, there already, or failed."}, []string{"result"})}
	for _, result := range []string{resultMade, resultThere, resultFailed} {
		r.results.WithLabelValues(result)
	}
	o.Registry.MustRegister(r.results)
	return r
}

const (
	resultMade   = "made"
	resultThere  = "there"
	resultFailed = "failed"
)

// Run tells problems until the context ends.
func (r *Recorder) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		r.tell(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// present is everything that is wrong now, in order.
func (r *Recorder) present() []Told {
	set := map[Told]struct{}{}
	for _, one := range r.Problems() {
		if _, ok := references[one.Object.Kind]; !ok {
			continue // a file, a watch: nothing that can be described
		}
		note := one.Message
		if one.Field != "" {
			note = one.Field + ": " + note
		}
		set[Told{one.Object, ReasonObject, bounded(note)}] = struct{}{}
	}
	for node, problems := range r.Nodes() {
		for _, text := range problems {
			set[Told{model.Key{Kind: model.KindNode, Name: node}, ReasonNode, bounded(text)}] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(set), func(a, b Told) int {
		return cmp.Or(a.Object.Compare(b.Object), strings.Compare(a.Reason, b.Reason), strings.Compare(a.Note, b.Note))
	})
}

// bounded cuts a note to what the API takes, between two characters.
func bounded(note string) string {
	if len(note) <= maxNote {
		return note
	}
	const more = "..."
	cut := maxNote - len(more)
	for cut > 0 && !utf8.RuneStart(note[cut]) {
		cut--
	}
	return note[:cut] + more
}

// tell makes the Events that are due, as many as may be made now.
func (r *Recorder) tell(ctx context.Context, now time.Time) {
	present := r.present()
	still := make(map[Told]time.Time, len(present))
	for _, one := range present {
		if last, ok := r.told[one]; ok {
			still[one] = last
		}
	}
	r.told = still // what is no longer wrong is told at once when it is again
	var failure error
	tried := false
	defer func() {
		if tried {
			r.noteFailure(failure)
		}
	}()
	for _, one := range present {
		if last, ok := r.told[one]; ok && now.Sub(last) < repeatEvery {
			continue
		}
		if ctx.Err() != nil || !r.limit.AllowN(now, 1) {
			return // the rest is due next time too
		}
		result, err := r.record(ctx, one, now)
		r.results.WithLabelValues(result).Inc()
		tried = true
		if err == nil {
			r.told[one] = now
			continue
		}
		failure = err
		if status := apierrors.APIStatus(nil); !errors.As(err, &status) {
			return // the API server does not answer, and would not for the others
		}
	}
}

func (r *Recorder) noteFailure(err error) {
	switch {
	case err == nil:
		r.failing = ""
	case r.failing == "":
		r.failing = err.Error()
		r.Log.Warn("problems cannot be told as Events; status and metrics tell them", zap.Error(err))
	}
}

// recordTimeout bounds an attempt to make one Event.
const recordTimeout = 10 * time.Second

// record makes an Event, unless it is there or its object is not.
func (r *Recorder) record(ctx context.Context, one Told, now time.Time) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	regarding, err := r.reference(ctx, one.Object)
	if apierrors.IsNotFound(err) {
		return resultThere, nil // it is going, and its problem with it
	}
	if err != nil {
		return resultFailed, fmt.Errorf("asking for %s: %w", one.Object, err)
	}
	event := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Name: eventName(one, string(regarding.UID)), Namespace: regarding.Namespace},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "millrace.io/calculator",
		ReportingInstance:   r.Instance,
		Action:              "Compute",
		Reason:              one.Reason,
		Regarding:           regarding,
		Note:                one.Note,
		Type:                corev1.EventTypeWarning,
	}
	if event.Namespace == "" {
		event.Namespace = metav1.NamespaceDefault // of cluster-wide objects, by the API's rule
	}
	_, err = r.client.EventsV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{})
	switch {
	case err == nil:
		return resultMade, nil
	case apierrors.IsAlreadyExists(err):
		return resultThere, nil
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err) && apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return resultThere, nil // the namespace is going
	case apierrors.IsInvalid(err):
		// This one will never be taken; the others may be.
		r.Log.Warn("the API server does not take an Event", zap.Stringer("object", one.Object), zap.Error(err))
		return resultFailed, nil
	}
	return resultFailed, fmt.Errorf("making an Event of %s: %w", one.Object, err)
}

// eventName is the same on every calculator.
func eventName(one Told, uid string) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{string(one.Object.Kind), one.Object.Namespace, one.Object.Name, uid, one.Reason, one.Note}, "\x00")))
	name := one.Object.Name
	if len(name) > maxName {
		name = strings.TrimRight(name[:maxName], "-.")
	}
	return fmt.Sprintf("%s.%x", name, sum[:8])
}
