// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/millrace-project/millrace/proto/announcement"
)

// store keeps one Secret as an API server does.
type store struct {
	mu      sync.Mutex
	secret  *corev1.Secret
	version int
	away    bool
	writes  int
}

var resource = schema.GroupResource{Resource: "secrets"}

func (s *store) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.away:
		return nil, fmt.Errorf("away")
	case s.secret == nil:
		return nil, apierrors.NewNotFound(resource, name)
	}
	return s.secret.DeepCopy(), nil
}

func (s *store) put(secret *corev1.Secret) *corev1.Secret {
	s.version++
	s.writes++
	s.secret = secret.DeepCopy()
	s.secret.ResourceVersion = strconv.Itoa(s.version)
	return s.secret.DeepCopy()
}

func (s *store) Create(_ context.Context, secret *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secret != nil {
		return nil, apierrors.NewAlreadyExists(resource, secret.Name)
	}
	return s.put(secret), nil
}

func (s *store) Update(_ context.Context, secret *corev1.Secret, _ metav1.UpdateOptions) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secret == nil {
		return nil, apierrors.NewNotFound(resource, secret.Name)
	}
	if secret.ResourceVersion != s.secret.ResourceVersion {
		return nil, apierrors.NewConflict(resource, secret.Name, fmt.Errorf("changed"))
	}
	return s.put(secret), nil
}

func (s *store) annotate(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.secret.Annotations == nil {
		s.secret.Annotations = map[string]string{}
	}
	s.secret.Annotations[key] = value
	s.put(s.secret)
}

// world is some calculators on one Secret, with a clock.
type world struct {
	t     *testing.T
	store store
	now   time.Time
	// told is what agents were told to trust, by the bundle that is announced.
	told  []*x509.Certificate
	steps []string
}

var policy = Policy{Lifetime: 900 * time.Hour, Announce: 24 * time.Hour}

func newWorld(t *testing.T) *world {
	return &world{t: t, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func (w *world) calculator() *Authority {
	return New(Options{Secrets: &w.store, Name: "ca", Policy: policy, Log: zap.NewNop(), Now: func() time.Time { return w.now },
		Addresses: func() []net.IP { return []net.IP{net.IPv4(10, 0, 0, 1)} }, Stepped: func(s string) { w.steps = append(w.steps, s) }})
}

// sync lets a calculator look and announce.
func (w *world) sync(a *Authority) {
	w.t.Helper()
	if err := a.Sync(context.Background(), func(c *x509.Certificate) bool { return slices.ContainsFunc(w.told, c.Equal) }); err != nil {
		w.t.Fatal(err)
	}
	w.told = bundle(a)
}

func bundle(a *Authority) []*x509.Certificate {
	var list []*x509.Certificate
	for _, t := range a.Trusted() {
		list = append(list, t.Certificate)
	}
	return list
}

// accepts tells whether an agent that trusts these accepts the calculator.
func (w *world) accepts(a *Authority, trusted ...*x509.Certificate) error {
	w.t.Helper()
	shown, err := a.Certificate()
	if err != nil {
		w.t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range trusted {
		roots.AddCert(c)
	}
	for _, der := range shown.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			w.t.Fatal(err)
		}
		between.AddCert(c)
	}
	for _, name := range []string{announcement.ServerName, "10.0.0.1"} {
		if _, err := shown.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: between, CurrentTime: w.now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) mustAccept(what string, a *Authority, trusted ...*x509.Certificate) {
	w.t.Helper()
	if err := w.accepts(a, trusted...); err != nil {
		w.t.Errorf("%s: %v", what, err)
	}
}

// Calculators that start at once end with one authority.
func TestCreatedOnce(t *testing.T) {
	w := newWorld(t)
	var calculators []*Authority
	var running sync.WaitGroup
	for range 8 {
		a := w.calculator()
		a.Stepped = func(string) {}
		calculators = append(calculators, a)
		running.Go(func() {
			if err := a.Sync(context.Background(), func(*x509.Certificate) bool { return false }); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if w.store.writes != 1 {
		t.Errorf("the Secret was written %d times, want once", w.store.writes)
	}
	for _, a := range calculators {
		w.mustAccept("an agent that trusts the first", a, bundle(calculators[0])...)
	}
}

func TestRotation(t *testing.T) {
	for _, forced := range []bool{false, true} {
		t.Run(fmt.Sprint("forced ", forced), func(t *testing.T) {
			w := newWorld(t)
			a, b := w.calculator(), w.calculator()
			w.sync(a)
			w.sync(b)
			old := bundle(a)
			if forced {
				w.now = w.now.Add(48 * time.Hour)
				w.store.annotate(RotateAnnotation, RotatePhased)
			} else {
				w.now = w.now.Add(2*policy.Lifetime/3 + time.Hour)
			}
			w.sync(a)
			if len(bundle(a)) != 2 {
				t.Fatalf("%d authorities after a rotation began, want 2", len(bundle(a)))
			}
			w.mustAccept("the new one is used before it may be", a, old...)
			if got := w.store.secret.Annotations[RotateAnnotation]; got != "" {
				t.Errorf("the annotation is still %q", got)
			}
			w.now = w.now.Add(policy.Announce - time.Minute)
			w.sync(b)
			w.sync(a)
			if w.accepts(a, bundle(a)[1]) == nil {
				t.Error("the new authority is used too early")
			}
			// The time is over, but agents were never told.
			told := w.told
			w.now = w.now.Add(2 * time.Minute)
			w.told = old
			if err := a.Sync(context.Background(), func(c *x509.Certificate) bool { return slices.ContainsFunc(w.told, c.Equal) }); err != nil {
				t.Fatal(err)
			}
			if w.accepts(a, told[1]) == nil {
				t.Error("the new authority is used although it was not announced")
			}
			w.told = told
			w.sync(a)
			if err := w.accepts(a, told[1]); err != nil {
				t.Errorf("the new authority is not used: %v", err)
			}
			w.mustAccept("an agent that was away and trusts the old one alone", a, old...)
			w.mustAccept("an agent that trusts what is announced, at a calculator that has not looked since", b, bundle(a)...)
			w.sync(b)
			w.mustAccept("an agent that trusts the new one alone", b, told[1])

			// A calculator that starts now, from the Secret.
			c := w.calculator()
			w.sync(c)
			w.mustAccept("an agent that was away, at a calculator that has just started", c, old...)

			w.now = w.now.Add(policy.Announce)
			w.sync(a)
			if len(bundle(a)) != 1 {
				t.Errorf("%d authorities after the rotation ended, want 1", len(bundle(a)))
			}
			w.mustAccept("an agent that was away all the time", a, old...)
			if want := []string{"created", "announced", "exchanged", "dropped"}; !slices.Equal(w.steps, want) {
				t.Errorf("steps %v, want %v", w.steps, want)
			}
			// Certificates do not outlive those who vouch for them.
			w.now = old[0].NotAfter.Add(time.Minute)
			w.sync(a)
			if w.accepts(a, old...) == nil {
				t.Error("an agent that trusts an expired authority alone accepts the calculator")
			}
			w.mustAccept("all others", a, bundle(a)...)
		})
	}
}

func TestRotateNow(t *testing.T) {
	w := newWorld(t)
	a := w.calculator()
	w.sync(a)
	old := bundle(a)
	w.store.annotate(RotateAnnotation, RotatePhased)
	w.sync(a)
	w.store.annotate(RotateAnnotation, RotateNow) // in the midst of it
	w.sync(a)
	if len(bundle(a)) != 2 || bundle(a)[0].Equal(old[0]) {
		t.Fatal("the new authority is not used")
	}
	w.mustAccept("an agent that trusts the old one alone", a, old...)
	if len(w.store.secret.Annotations) != 1 {
		t.Errorf("annotations are left: %v", w.store.secret.Annotations)
	}
}

func TestWrongAnnotation(t *testing.T) {
	w := newWorld(t)
	a := w.calculator()
	w.sync(a)
	w.store.annotate(RotateAnnotation, "soon")
	err := a.Sync(context.Background(), func(*x509.Certificate) bool { return true })
	if err == nil || !strings.Contains(err.Error(), RotateAnnotation) || !strings.Contains(err.Error(), `"soon"`) {
		t.Errorf("error %v", err)
	}
	if len(bundle(a)) != 1 {
		t.Error("it was rotated")
	}
}

// The Secret was deleted, on purpose or not: there is a new authority at once,
// for which the old one vouches.
func TestDeleted(t *testing.T) {
	w := newWorld(t)
	a := w.calculator()
	w.sync(a)
	old := bundle(a)
	w.store.secret = nil
	w.sync(a)
	if len(bundle(a)) != 1 || bundle(a)[0].Equal(old[0]) {
		t.Fatal("the old authority is still announced")
	}
	w.mustAccept("an agent that trusts the old one alone", a, old...)
}

func TestDamaged(t *testing.T) {
	for field, damage := range map[string]func(*corev1.Secret){
		"data[tls.crt], data[tls.key]":                 func(s *corev1.Secret) { s.Data[keyCurrentKey] = []byte("x") },
		"data[earlier.crt]":                            func(s *corev1.Secret) { s.Data[keyEarlier] = []byte("x") },
		"metadata.annotations[" + annotationUsed + "]": func(s *corev1.Secret) { s.Annotations[annotationUsed] = "x" },
	} {
		w := newWorld(t)
		a := w.calculator()
		w.sync(a)
		old, writes := bundle(a), w.store.writes
		damage(w.store.secret)
		err := a.Sync(context.Background(), func(*x509.Certificate) bool { return true })
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: error %v", field, err)
		}
		if w.store.writes != writes {
			t.Errorf("%s: what is damaged was overwritten", field)
		}
		w.mustAccept(field+": what was known is in force", a, old...)
		fresh := w.calculator()
		_ = fresh.Sync(context.Background(), func(*x509.Certificate) bool { return true })
		if _, err := fresh.Certificate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: a calculator without a certificate says %v", field, err)
		}
	}
}

// While the API server is away a calculator goes on, and renews what it shows.
func TestAway(t *testing.T) {
	w := newWorld(t)
	a := w.calculator()
	w.sync(a)
	w.store.away = true
	for range 20 {
		w.now = w.now.Add(policy.Lifetime / 24)
		if err := a.Sync(context.Background(), func(*x509.Certificate) bool { return true }); err == nil {
			t.Fatal("no error")
		}
		w.mustAccept("while the API server is away", a, bundle(a)...)
	}
}
