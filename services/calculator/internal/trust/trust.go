// SPDX-License-Identifier: Apache-2.0

// Package trust lets agents find calculators and trust them with nothing made by
// hand: it keeps the calculators' certificate authority in a Secret and
// announces it, with the addresses of the calculators, in a ConfigMap.
package trust

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/announcement"
	"github.com/millrace-project/millrace/services/calculator/internal/trust/announce"
	"github.com/millrace-project/millrace/services/calculator/internal/trust/authority"
	"github.com/millrace-project/millrace/services/internal/transport"
)

const (
	// period is how often Secret and ConfigMap are looked at although nothing
	// told of a change: so long a change of the Secret goes unnoticed.
	period = 15 * time.Second
	// together is for how long changes are gathered: calculators that see the
	// same one must not all write at once.
	together = 300 * time.Millisecond
	// timeout bounds one look.
	timeout = 20 * time.Second
)

// KindSecret is the kind of object that problems with the authority are about.
const KindSecret model.Kind = "Secret"

// Options configure a Keeper.
type Options struct {
	*Flags
	// Own tells that the calculators' own authority is used.
	Own bool
	// Listen is the address that agents are served on.
	Listen string
	// Serving gives the certificate that agents are shown, or says why there is
	// none.
	Serving func() (*tls.Certificate, error)
	// Config is how to reach the API server.
	Config *rest.Config
	// SetProblems reports what is wrong, by the part that it belongs to.
	SetProblems func(part string, problems []problem.Problem)
	Log         *zap.Logger
	Registry    prometheus.Registerer
}

// Keeper keeps what agents find and trust calculators by.
type Keeper struct {
	Options
	client    kubernetes.Interface
	authority *authority.Authority // nil if it is not the calculators' own
	port      uint16
	pods      cache.Store
	metrics   *metrics
	wake      chan struct{}

	mu        sync.Mutex
	addresses []string // announced
	trusted   []authority.Trusted
	wrong     map[string]string // what is told as a problem, by part
}

// New returns a keeper.
func New(options Options) (*Keeper, error) {
	// Its questions are few, and must not wait for the source's.
	client, err := kubernetes.NewForConfig(options.Config)
	if err != nil {
		return nil, fmt.Errorf("making a client for %s: %w", options.Config.Host, err)
	}
	host, port, err := transport.CheckAddress("--listen", options.Listen)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		return nil, fmt.Errorf("--listen: %q has no port that could be announced to agents", options.Listen)
	}
	k := &Keeper{Options: options, client: client, port: port, wake: make(chan struct{}, 1), wrong: map[string]string{}}
	k.metrics = newMetrics(options.Registry, k)
	if options.Own {
		k.authority = authority.New(authority.Options{
			Secrets: client.CoreV1().Secrets(options.Namespace), Name: options.Secret, Policy: options.Policy,
			Addresses: dialledAt(host),
			Stepped: func(step string) {
				k.metrics.steps.WithLabelValues(step).Inc()
				k.look() // another step may be due as soon as this one is announced
			},
			Log: options.Log, Now: time.Now,
		})
	}
	return k, nil
}

// Certificate returns what to show to agents.
func (k *Keeper) Certificate() (*tls.Certificate, error) { return k.authority.Certificate() }

// Sign signs a certificate by which somebody else serves under a name; only with
// an authority of the calculators' own.
func (k *Keeper) Sign(public crypto.PublicKey, name string) ([]*x509.Certificate, error) {
	return k.authority.Sign(public, name)
}

// look has everything looked at soon.
func (k *Keeper) look() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Run keeps Secret and ConfigMap until the context ends.
func (k *Keeper) Run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	if k.ConfigMap != "" {
		store, controller := k.watchPods()
		k.pods = store
		running.Go(func() { controller.RunWithContext(ctx) })
		if !cache.WaitForCacheSync(ctx.Done(), controller.HasSynced) {
			return
		}
	}
	for {
		k.sync(ctx)
		timer := time.NewTimer(period/2 + rand.N(period))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			continue
		case <-k.wake:
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(rand.N(together)):
		}
	}
}

// watchPods follows the calculators' pods.
func (k *Keeper) watchPods() (cache.Store, cache.Controller) {
	pods := k.client.CoreV1().Pods(k.Namespace)
	selecting := func(options metav1.ListOptions) metav1.ListOptions {
		options.LabelSelector = k.Selector
		return options
	}
	return cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				list, err := pods.List(ctx, selecting(options))
				k.note(ctx, "pods", model.Key{Kind: model.KindPod, Namespace: k.Namespace}, err)
				return list, err
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return pods.Watch(ctx, selecting(options))
			},
		}, k.client),
		ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { k.look() },
			UpdateFunc: func(any, any) { k.look() },
			DeleteFunc: func(any) { k.look() },
		},
	})
}

// sync takes one look at everything.
func (k *Keeper) sync(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	secret := model.Key{Kind: KindSecret, Namespace: k.Namespace, Name: k.Secret}
	if k.ConfigMap == "" {
		k.note(ctx, "authority", secret, k.authority.Sync(ctx, func(*x509.Certificate) bool { return true }))
		k.set(nil, k.authority.Trusted())
		return
	}
	object := model.Key{Kind: model.KindConfigMap, Namespace: k.Namespace, Name: k.ConfigMap}
	maps := k.client.CoreV1().ConfigMaps(k.Namespace)
	for {
		// It is read before the Secret: whoever wrote it in between knew a Secret
		// that is no older than what is read now, or this write is refused.
		present, err := announce.Read(ctx, maps, k.ConfigMap)
		if err != nil {
			k.note(ctx, "announcement", object, err)
			if k.authority != nil { // to renew what is shown
				k.note(ctx, "authority", secret, k.authority.Sync(ctx, func(*x509.Certificate) bool { return false }))
			}
			return
		}
		trusted, err := k.trust(ctx, present)
		if k.authority != nil {
			k.note(ctx, "authority", secret, err)
		} else {
			k.note(ctx, "authority", object, err)
		}
		if err != nil && len(trusted) == 0 {
			return // to announce nobody would be worse than what is there
		}
		addresses := announce.Addresses(k.calculators(), k.port, present.Addresses)
		changed, again, err := present.Write(ctx, maps, addresses, certificates(trusted))
		if again && ctx.Err() == nil {
			continue
		}
		k.note(ctx, "announcement", object, err)
		if err != nil {
			return
		}
		if changed {
			k.Log.Info("calculators announced", zap.Strings("addresses", addresses), zap.Int("authorities", len(trusted)))
			k.look()
		}
		k.set(addresses, trusted)
		return
	}
}

// trust gives what agents are to trust.
func (k *Keeper) trust(ctx context.Context, present *announce.Announcement) ([]authority.Trusted, error) {
	if k.authority != nil {
		err := k.authority.Sync(ctx, present.Announced)
		return k.authority.Trusted(), err
	}
	var own []*x509.Certificate
	var err error
	if k.AuthorityFile != "" {
		if own, err = readAuthorities(k.AuthorityFile); err != nil {
			err = fmt.Errorf("--tls-ca: %w", err)
		}
	}
	// What others announce stays until it expires: the files of calculators do
	// not change at one time, and none must take away what another one needs.
	for _, certificate := range present.Authorities {
		if time.Now().Before(certificate.NotAfter) && !slices.ContainsFunc(own, certificate.Equal) {
			own = append(own, certificate)
		}
	}
	slices.SortFunc(own, func(a, b *x509.Certificate) int {
		if order := b.NotAfter.Compare(a.NotAfter); order != 0 {
			return order
		}
		return strings.Compare(string(a.Raw), string(b.Raw))
	})
	var trusted []authority.Trusted
	for _, certificate := range own {
		trusted = append(trusted, authority.Trusted{Role: authority.File, Certificate: certificate})
	}
	return trusted, err
}

func certificates(trusted []authority.Trusted) []*x509.Certificate {
	var list []*x509.Certificate
	for _, t := range trusted {
		list = append(list, t.Certificate)
	}
	return list
}

func (k *Keeper) calculators() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, object := range k.pods.List() {
		if pod, ok := object.(*corev1.Pod); ok {
			pods = append(pods, pod)
		}
	}
	return pods
}

func (k *Keeper) set(addresses []string, trusted []authority.Trusted) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.addresses, k.trusted = addresses, trusted
}

// note tells what is wrong with an object, or that nothing is any more.
func (k *Keeper) note(ctx context.Context, part string, object model.Key, err error) {
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	message := ""
	if err != nil {
		k.metrics.failures.WithLabelValues(part).Inc()
		message = err.Error()
		if apierrors.IsForbidden(err) {
			verbs := "get, create and update on it"
			if object.Kind == model.KindPod {
				verbs = "list and watch"
			}
			message += "; grant " + verbs + " to this calculator"
		}
	}
	k.mu.Lock()
	before := k.wrong[part]
	k.wrong[part] = message
	k.mu.Unlock()
	if message == before {
		return
	}
	var problems []problem.Problem
	if message != "" {
		problems = append(problems, problem.Problem{Object: object, Message: message + "; what was known before stays in force, and this is tried again"})
	}
	k.SetProblems("trust "+part, problems)
}

// readAuthorities reads a file of certificates.
func readAuthorities(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, bad := announcement.ParseAuthorities(text)
	if len(bad) > 0 {
		return list, fmt.Errorf("%s: %s", path, bad[0])
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return list, nil
}
