// SPDX-License-Identifier: Apache-2.0

// Package kube reads objects from a Kubernetes API server. Each kind has a
// reflector of client-go, which lists and watches; what arrives is trimmed to
// the calculation's model at once, so that no object of the API is kept.
package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// Source reads from an API server.
type Source struct {
	client *connection // of the watches
	probes *connection // of questions beside them; a frozen watch must not freeze these
	// announcement is the one ConfigMap that is watched; none if it has no name.
	announcement types.NamespacedName
	host         string // of the API server, as a URL
	origin       string // from where the host is known
	log          *zap.Logger
	sink         source.Sink // set by Run

	mu sync.Mutex
	// stores are those of the watched kinds, once Run has made them.
	stores []*store
	// epoch is "identity/counter", empty until the cluster is known.
	epoch    string
	identity string
	counter  uint64
	// ahead is what there is to say about agents that know more than the API
	// server, empty if there are none, aheadCounter the epoch that would let
	// them in, and aheadSeen when one came last.
	ahead        string
	aheadCounter uint64
	aheadSeen    time.Time
	lastCut      time.Time // of the watches' connections
	// unsynced has the kinds that have not been listed yet.
	unsynced map[string]bool
	// failed is closed, after failure is set, when the source cannot go on.
	failed  chan struct{}
	failure error
}

// New returns a source that reads from the API server; origin is from where its
// address is known. Of ConfigMaps it reads that announcement alone, or none if
// it has no name.
func New(config *rest.Config, origin string, announcement types.NamespacedName, log *zap.Logger) (*Source, error) {
	if err := boundSilence(); err != nil {
		return nil, err
	}
	client, err := connect(config)
	if err != nil {
		return nil, err
	}
	probes, err := connect(config)
	if err != nil {
		return nil, err
	}
	return &Source{client: client, probes: probes, announcement: announcement, host: config.Host, origin: origin, log: log, unsynced: map[string]bool{}, failed: make(chan struct{})}, nil
}

// Name implements source.Source.
func (s *Source) Name() string { return "kube" }

// Location implements source.Located.
func (s *Source) Location() string { return s.host + " (from " + s.origin + ")" }

// Epoch implements source.Source.
func (s *Source) Epoch() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// kind is a kind that is watched.
type kind struct {
	plural string
	kind   model.Kind
	object runtime.Object
	label  string // selector
	field  string // selector
	list   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	// one reads in one namespace only, where an object is found by its name,
	// and asked is a name that may be asked for there.
	one   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	asked string
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// lister is what the typed clients of all kinds have in common.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func kindOf[L runtime.Object](plural string, k model.Kind, object runtime.Object, all, some lister[L]) kind {
	list := func(from lister[L]) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
		return func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return from.List(ctx, options)
		}
	}
	return kind{plural: plural, kind: k, object: object, list: list(all), one: list(some), asked: nobody, watch: all.Watch}
}

// leftToOthers selects, as kube-proxy does, what another service proxy has not
// been given.
const leftToOthers = "!" + model.LabelServiceProxyName + ",!" + model.LabelHeadless

func kinds(client kubernetes.Interface, announcement types.NamespacedName) []kind {
	const all, system = metav1.NamespaceAll, metav1.NamespaceSystem
	core, discovery := client.CoreV1(), client.DiscoveryV1()
	services := kindOf("services", model.KindService, &corev1.Service{}, core.Services(all), core.Services(system))
	services.label = leftToOthers
	slices := kindOf("endpointslices", model.KindEndpointSlice, &discoveryv1.EndpointSlice{}, discovery.EndpointSlices(all), discovery.EndpointSlices(system))
	slices.label = leftToOthers
	pods := kindOf("pods", model.KindPod, &corev1.Pod{}, core.Pods(all), core.Pods(system))
	// Finished pods have no network any more, and there may be many.
	pods.field = fields.AndSelectors(
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed))).String()
	list := []kind{
		kindOf("namespaces", model.KindNamespace, &corev1.Namespace{}, core.Namespaces(), core.Namespaces()),
		kindOf("nodes", model.KindNode, &corev1.Node{}, core.Nodes(), core.Nodes()),
		services, slices, pods,
	}
	if announcement.Name != "" {
		// One object by its name: the right to read it need be no right to read
		// others.
		maps := core.ConfigMaps(announcement.Namespace)
		own := kindOf("configmaps", model.KindConfigMap, &corev1.ConfigMap{}, maps, maps)
		own.asked = announcement.Name
		own.field = fields.OneTermEqualSelector(metav1.ObjectNameField, announcement.Name).String()
		list = append(list, own)
	}
	return list
}

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	silenceKlog(s.log)
	s.sink = sink
	watched, probed := kinds(s.client, s.announcement), kinds(s.probes, s.announcement)
	stores := make([]*store, len(watched))
	s.mu.Lock()
	// A new cluster has no kube-system namespace for a moment; without knowing
	// the cluster nothing can be served.
	s.unsynced[identity] = true
	for i, k := range watched {
		s.unsynced[k.plural] = true
		stores[i] = newStore(s, sink, k, probed[i])
	}
	s.stores = stores
	s.mu.Unlock()
	for _, st := range stores {
		watcher := &cache.ListWatch{
			ListWithContextFunc:  st.listOnce,
			WatchFuncWithContext: st.watchOnce,
		}
		reflector := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(watcher, s.client.Interface), st.kind.object, st,
			cache.ReflectorOptions{Name: st.kind.plural, Backoff: retries()})
		running.Go(func() { reflector.RunWithContext(ctx) })
		running.Go(func() { st.answer(ctx) })
	}
	running.Go(func() { s.forgetAhead(ctx) })
	select {
	case <-ctx.Done():
		return nil
	case <-s.failed:
		return s.failure
	}
}

// retries spaces attempts to list and watch. There are few calculators, so
// that an API server which comes back can be found soon.
func retries() *wait.Backoff {
	return &wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 4, Cap: 2 * time.Second}
}

// identity stands beside the watched kinds for knowing which cluster it is.
const identity = "identity"

// listed notes that a kind has been listed, and the cluster identified, and
// tells the sink when nothing is missing any more.
func (s *Source) listed(plural string, sink source.Sink) {
	s.mu.Lock()
	waiting := len(s.unsynced) > 0
	delete(s.unsynced, plural)
	if s.epoch != "" {
		delete(s.unsynced, identity)
	}
	complete := waiting && len(s.unsynced) == 0
	s.mu.Unlock()
	if complete {
		sink.Synced()
	}
}

// explain adds to an error what an operator needs: where, and what to do. The
// reason is the same for as long as the same is wrong.
func (s *Source) explain(verb string, err error) (reason, message string) {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		reason = string(status.Status().Reason)
		switch status.Status().Code {
		case http.StatusForbidden:
			return reason, fmt.Sprintf("%s at %s is forbidden: %v; grant list and watch to this calculator", verb, s.Location(), err)
		case http.StatusUnauthorized:
			return reason, fmt.Sprintf("%s at %s is refused, the credential is not accepted: %v", verb, s.Location(), err)
		}
		if reason != "" {
			return reason, fmt.Sprintf("%s at %s fails: %v", verb, s.Location(), err)
		}
	}
	// The whole URL would hide what matters, and change with every attempt.
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return err.Error(), fmt.Sprintf("%s at %s fails: %v", verb, s.Location(), err)
}

// staleAfter is the greatest age of a trigger time that is believed.
const staleAfter = 10 * time.Minute
