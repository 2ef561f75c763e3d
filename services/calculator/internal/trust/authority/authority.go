// SPDX-License-Identifier: Apache-2.0

// Package authority keeps a certificate authority in a Secret that all
// calculators of a cluster share, and makes from it the certificate that this
// calculator shows to agents.
//
// Any calculator creates the authority and takes the next step of a rotation;
// the API server lets one of those who try at once succeed, and the others take
// what that one wrote. A rotation first announces the new authority to agents,
// signs with its key only when they have had time to hear of it, and announces
// the old one for as long again. Beside that the old authority vouches for
// the new one, so that an agent which was away all the time and trusts the old
// one alone, for as long as that is valid, still accepts a calculator.
package authority

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/announcement"
	"github.com/millrace-project/millrace/services/calculator/internal/trust/shared"
)

// Options configure an Authority.
type Options struct {
	// Secrets is a client for those of the namespace.
	Secrets shared.Client[*corev1.Secret]
	// Name of the Secret.
	Name   string
	Policy Policy
	// Addresses are those that the calculator can be dialled at; its certificate
	// names them.
	Addresses func() []net.IP
	// Stepped is told of each step of a rotation that this process took.
	Stepped func(step string)
	Log     *zap.Logger
	// Now is the clock.
	Now func() time.Time
}

// Authority is the authority as this process knows it. Before the first Sync
// that succeeds it is none.
type Authority struct {
	Options

	mu      sync.Mutex
	state   *state
	serving *tls.Certificate
	trouble error // of the last Sync
}

// servingLifetime is how long a certificate to serve with is valid at most. It
// lives in memory and costs a signature.
const servingLifetime = 30 * 24 * time.Hour

func (p Policy) servingLifetime() time.Duration { return min(servingLifetime, p.Lifetime/4) }

// New returns an authority that is not known yet.
func New(options Options) *Authority { return &Authority{Options: options} }

// errRotate is a RotateAnnotation that says nothing.
type errRotate string

func (e errRotate) Error() string {
	return fmt.Sprintf("metadata.annotations[%s]: %q must be %q or %q: it counts for nothing", RotateAnnotation, string(e), RotatePhased, RotateNow)
}

// attempts bounds how often a write is tried anew that another calculator came
// before.
const attempts = 5

// Sync reads the Secret, creates it if there is none, takes the next step of a
// rotation if that is due, and renews the serving certificate. announced tells
// whether agents are told to trust a certificate. The error names what is wrong
// with the Secret; what was known before stays in force.
func (a *Authority) Sync(ctx context.Context, announced func(*x509.Certificate) bool) error {
	err := a.read(ctx, announced)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trouble = err
	return errors.Join(err, a.renewLocked())
}

func (a *Authority) read(ctx context.Context, announced func(*x509.Certificate) bool) error {
	for range attempts {
		secret, err := shared.Read(ctx, a.Secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: a.Name}, Type: corev1.SecretTypeOpaque})
		if err != nil {
			return err
		}
		next, phases, wrong := a.step(secret, announced)
		if next == nil {
			return wrong
		}
		if len(phases) > 0 {
			data, annotations, err := next.encode()
			if err != nil {
				return err
			}
			write(secret, data, annotations)
			again, err := shared.Write(ctx, a.Secrets, secret)
			if err != nil {
				return err
			}
			if again {
				continue // another calculator was first
			}
		}
		a.adopt(next, phases)
		return wrong
	}
	return errors.New("others change it all the time")
}

// step gives what the Secret is to hold. No state means that nothing can be
// done; wrong may also be about a part that counts for nothing.
func (a *Authority) step(secret *corev1.Secret, announced func(*x509.Certificate) bool) (next *state, phases []phase, wrong error) {
	now := a.Now()
	if len(secret.Data) == 0 {
		a.mu.Lock()
		before := a.state
		a.mu.Unlock()
		next, err := newState(now, a.Policy, before)
		return next, []phase{phaseCreated}, err
	}
	next, err := decode(secret.Data, secret.Annotations)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; nothing of it is used. Deleting the Secret makes a new authority", err)
	}
	rotate := secret.Annotations[RotateAnnotation]
	if rotate != "" && rotate != RotatePhased && rotate != RotateNow {
		rotate, wrong = "", errRotate(rotate)
	}
	phases, err = next.advance(now, a.Policy, rotate, announced)
	if err != nil {
		return nil, nil, err
	}
	if rotate != "" && len(phases) == 0 {
		phases = []phase{phaseAnnounced} // it goes on, perhaps in a hurry
	}
	return next, phases, wrong
}

// write puts a state into the Secret, and takes out what an operator asked for:
// that is in the state now.
func write(secret *corev1.Secret, data map[string][]byte, annotations map[string]string) {
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	for _, key := range []string{keyCurrent, keyCurrentKey, keyNext, keyNextKey, keyEarlier, keyBridges} {
		delete(secret.Data, key)
	}
	maps.Copy(secret.Data, data)
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	switch secret.Annotations[RotateAnnotation] {
	case RotatePhased, RotateNow:
		delete(secret.Annotations, RotateAnnotation)
	}
	for _, key := range []string{annotationMade, annotationUsed, annotationHurry} {
		delete(secret.Annotations, key)
	}
	maps.Copy(secret.Annotations, annotations)
}

// adopt makes a state the one that is known.
func (a *Authority) adopt(next *state, phases []phase) {
	for _, p := range phases {
		a.Stepped(string(p))
		a.Log.Info("certificate authority: "+string(p), zap.String("secret", a.Name),
			zap.String("current", announcement.Fingerprint(next.current.certificate)), zap.Time("expires", next.current.certificate.NotAfter),
			zap.Bool("rotating", next.next != nil))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state != nil && len(phases) == 0 && !a.state.current.certificate.Equal(next.current.certificate) {
		a.Log.Info("certificate authority: another is in use", zap.String("secret", a.Name),
			zap.String("current", announcement.Fingerprint(next.current.certificate)), zap.Time("expires", next.current.certificate.NotAfter))
	}
	a.state = next
}

// renewLocked makes a new serving certificate if the present one is about to
// expire, of another authority, or for other addresses.
func (a *Authority) renewLocked() error {
	if a.state == nil {
		return nil
	}
	now, addresses, bridges := a.Now(), a.Addresses(), a.state.chain()
	if s := a.serving; s != nil && len(s.Certificate) == 1+len(bridges) &&
		s.Leaf.CheckSignatureFrom(a.state.current.certificate) == nil &&
		now.Before(s.Leaf.NotAfter.Add(-rotateBefore(s.Leaf))) && slices.EqualFunc(s.Leaf.IPAddresses, addresses, net.IP.Equal) {
		return nil
	}
	serving, err := a.state.current.serve(now, a.Policy.servingLifetime(), addresses, bridges)
	if err != nil {
		return err
	}
	a.Log.Debug("new serving certificate", zap.Time("expires", serving.Leaf.NotAfter))
	a.serving = serving
	return nil
}

// Certificate returns what to show to agents.
func (a *Authority) Certificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.serving == nil {
		if a.trouble != nil {
			return nil, fmt.Errorf("there is no certificate to serve with: Secret %s: %w", a.Name, a.trouble)
		}
		return nil, fmt.Errorf("there is no certificate to serve with: Secret %s has not been read yet", a.Name)
	}
	return a.serving, nil
}

// Sign signs a certificate by which somebody else serves under a name, and
// returns it with what leads from it to all authorities that are trusted.
func (a *Authority) Sign(public crypto.PublicKey, name string) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil {
		return nil, fmt.Errorf("there is no authority: Secret %s has not been read yet", a.Name)
	}
	leaf, err := a.state.current.server(a.Now(), a.Policy.servingLifetime(), public, []string{name}, nil)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", name, err)
	}
	return append([]*x509.Certificate{leaf}, a.state.chain()...), nil
}

// Role is what an authority is used for.
type Role int

// The roles.
const (
	Current Role = iota
	Next
	Earlier
	File
)

// String gives the role in a word.
func (r Role) String() string { return [...]string{"current", "next", "earlier", "file"}[r] }

// Trusted is an authority that agents are told to trust.
type Trusted struct {
	Role        Role
	Certificate *x509.Certificate
}

// Trusted lists what agents are to trust, the present one first; nothing before
// it is known.
func (a *Authority) Trusted() []Trusted {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.state == nil {
		return nil
	}
	list := []Trusted{{Current, a.state.current.certificate}}
	if a.state.next != nil {
		list = append(list, Trusted{Next, a.state.next.certificate})
	}
	for _, certificate := range a.state.earlier {
		list = append(list, Trusted{Earlier, certificate})
	}
	return list
}
