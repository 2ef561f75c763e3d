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
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// EpochAnnotation, on the namespace kube-system, is the counter that an
// operator raises after the cluster's state was set back (etcd restored from a
// backup), so that agents accept resource versions lower than they have seen.
const EpochAnnotation = "millrace.io/epoch"

// Source reads from an API server.
type Source struct {
	client kubernetes.Interface
	host   string
	log    *zap.Logger

	mu    sync.Mutex
	epoch string
	// unsynced has the kinds that have not been listed yet.
	unsynced map[string]bool
	// failed is closed, after failure is set, when the source cannot go on.
	failed  chan struct{}
	failure error
}

// Config returns how to reach the API server: as the file says, or as pods do
// if there is none.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	var config *rest.Config
	var err error
	if kubeconfig == "" {
		if config, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("no kubeconfig is given and this is no pod: %w", err)
		}
	} else if config, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", kubeconfig, err)
	}
	config.UserAgent = userAgent
	// Far cheaper to decode than JSON, on both sides.
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return config, nil
}

// New returns a source that reads from the API server.
func New(config *rest.Config, log *zap.Logger) (*Source, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", config.Host, err)
	}
	return &Source{client: client, host: config.Host, log: log, unsynced: map[string]bool{}, failed: make(chan struct{})}, nil
}

// Name implements source.Source.
func (s *Source) Name() string { return "kube" }

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
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// lister is what the typed clients of all kinds have in common.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func kindOf[L runtime.Object](plural string, k model.Kind, object runtime.Object, client lister[L]) kind {
	return kind{plural: plural, kind: k, object: object,
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, options)
		},
		watch: client.Watch,
	}
}

// leftToOthers selects, as kube-proxy does, what another service proxy has not
// been given.
const leftToOthers = "!" + model.LabelServiceProxyName + ",!" + model.LabelHeadless

func (s *Source) kinds() []kind {
	core := s.client.CoreV1()
	services := kindOf("services", model.KindService, &corev1.Service{}, core.Services(metav1.NamespaceAll))
	services.label = leftToOthers
	slices := kindOf("endpointslices", model.KindEndpointSlice, &discoveryv1.EndpointSlice{}, s.client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll))
	slices.label = leftToOthers
	pods := kindOf("pods", model.KindPod, &corev1.Pod{}, core.Pods(metav1.NamespaceAll))
	// Finished pods have no network any more, and there may be many.
	pods.field = fields.AndSelectors(
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodSucceeded)),
		fields.OneTermNotEqualSelector("status.phase", string(corev1.PodFailed))).String()
	return []kind{
		kindOf("namespaces", model.KindNamespace, &corev1.Namespace{}, core.Namespaces()),
		kindOf("nodes", model.KindNode, &corev1.Node{}, core.Nodes()),
		services, slices, pods,
	}
}

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	silenceKlog(s.log)
	kinds := s.kinds()
	// A new cluster has no kube-system namespace for a moment; without knowing
	// the cluster nothing can be served.
	s.unsynced[identity] = true
	for _, k := range kinds {
		s.unsynced[k.plural] = true
	}
	for _, k := range kinds {
		st := &store{source: s, sink: sink, kind: k, objects: map[model.Key]int64{}, log: s.log.With(zap.String("kind", k.plural))}
		watcher := &cache.ListWatch{
			ListWithContextFunc:  st.listOnce,
			WatchFuncWithContext: st.watchOnce,
		}
		reflector := cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(watcher, s.client), k.object, st,
			cache.ReflectorOptions{Name: k.plural, Backoff: &wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 5, Cap: 10 * time.Second}})
		running.Go(func() { reflector.RunWithContext(ctx) })
	}
	select {
	case <-ctx.Done():
		return nil
	case <-s.failed:
		return s.failure
	}
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

// noteEpoch learns the identity of the cluster from its kube-system namespace.
// A process computes for one epoch: when the epoch rises, everything that was
// read may be set back, so the process ends and is started anew.
func (s *Source) noteEpoch(namespace *corev1.Namespace) {
	counter := namespace.Annotations[EpochAnnotation]
	if counter == "" {
		counter = "0"
	}
	epoch := string(namespace.UID) + "/" + counter
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == "" {
		s.epoch = epoch
		s.log.Info("cluster identified", zap.String("epoch", epoch), zap.String("server", s.host))
		return
	}
	if s.epoch != epoch && s.failure == nil {
		s.failure = fmt.Errorf("the epoch of the cluster at %s changed from %q to %q: everything must be read anew", s.host, s.epoch, epoch)
		close(s.failed)
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
			return reason, fmt.Sprintf("%s at %s is forbidden: %v; grant list and watch to this calculator", verb, s.host, err)
		case http.StatusUnauthorized:
			return reason, fmt.Sprintf("%s at %s is refused, the credential is not accepted: %v", verb, s.host, err)
		}
		if reason != "" {
			return reason, fmt.Sprintf("%s at %s fails: %v", verb, s.host, err)
		}
	}
	// The whole URL would hide what matters, and change with every attempt.
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return err.Error(), fmt.Sprintf("%s at %s fails: %v", verb, s.host, err)
}

// staleAfter is the greatest age of a trigger time that is believed.
const staleAfter = 10 * time.Minute
