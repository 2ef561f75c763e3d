// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-project/millrace/proto/announcement"
)

// Keys of the Secret's data.
const (
	keyCurrent     = "tls.crt"
	keyCurrentKey  = "tls.key"
	keyNext        = "next.crt"
	keyNextKey     = "next.key"
	keyEarlier     = "earlier.crt"
	keyBridges     = "bridges.crt"
	annotationMade = "millrace.io/next-made"
	annotationUsed = "millrace.io/current-since"
)

// RotateAnnotation, on the Secret, has the authority exchanged. Calculators
// remove it when they begin.
const RotateAnnotation = "millrace.io/rotate"

// What RotateAnnotation may be.
const (
	// RotatePhased is the rotation that time brings.
	RotatePhased = "phased"
	// RotateNow signs with the new key as soon as its certificate is announced.
	RotateNow = "now"
)

// state is what the Secret holds.
type state struct {
	current *issuer
	// next is announced and signs nothing yet; nil outside of a rotation.
	next *issuer
	// made is since when next is there, and since when current is in use.
	made, since time.Time
	// earlier are certificates of keys that were in use before.
	earlier []*x509.Certificate
	// bridges are certificates of this and of next, made by those before them:
	// who trusts an earlier one alone trusts the present one by them.
	bridges []*x509.Certificate
	// hurry tells that next need not be announced for long.
	hurry bool
}

// Policy is how long things take.
type Policy struct {
	// Lifetime is how long an authority's certificate is valid. A rotation
	// begins when a third of it is left.
	Lifetime time.Duration
	// Announce is how long a new authority is announced before certificates are
	// signed with its key, and an old one after.
	Announce time.Duration
}

// rotateBefore is how long before its end a certificate is replaced.
func rotateBefore(certificate *x509.Certificate) time.Duration {
	return certificate.NotAfter.Sub(certificate.NotBefore) / 3
}

// phase is what a step of a rotation did.
type phase string

const (
	phaseCreated   phase = "created"
	phaseAnnounced phase = "announced"
	phaseExchanged phase = "exchanged"
	phaseDropped   phase = "dropped"
)

// Steps lists what Options.Stepped may be told.
func Steps() []string {
	return []string{string(phaseCreated), string(phaseAnnounced), string(phaseExchanged), string(phaseDropped)}
}

// newState makes the first authority. One that was there before, if it is known,
// vouches for it.
func newState(now time.Time, policy Policy, before *state) (*state, error) {
	current, err := newIssuer(now, policy.Lifetime)
	if err != nil {
		return nil, err
	}
	s := &state{current: current, since: now}
	if before != nil {
		bridge, err := before.current.vouch(current.certificate)
		if err != nil {
			return nil, err
		}
		s.bridges = append(s.bridges, bridge)
	}
	return s, nil
}

// advance takes the next step of a rotation, if one is due. announced tells
// whether agents are told to trust a certificate.
func (s *state) advance(now time.Time, policy Policy, rotate string, announced func(*x509.Certificate) bool) ([]phase, error) {
	var phases []phase
	forced := rotate != ""
	if s.next == nil && (forced || now.After(s.current.certificate.NotAfter.Add(-rotateBefore(s.current.certificate)))) {
		next, err := newIssuer(now, policy.Lifetime)
		if err != nil {
			return nil, err
		}
		bridge, err := s.current.vouch(next.certificate)
		if err != nil {
			return nil, err
		}
		s.next, s.made = next, now
		s.bridges = append(s.bridges, bridge)
		phases = append(phases, phaseAnnounced)
	}
	if s.next != nil {
		s.hurry = s.hurry || rotate == RotateNow
		// Waiting longer than the present one is valid would be no better.
		due := s.hurry || now.Sub(s.made) >= policy.Announce || now.After(s.current.certificate.NotAfter)
		if due && announced(s.next.certificate) {
			s.earlier = append(s.earlier, s.current.certificate)
			s.current, s.next, s.since, s.made, s.hurry = s.next, nil, now, time.Time{}, false
			phases = append(phases, phaseExchanged)
		}
	}
	if s.drop(now, policy) {
		phases = append(phases, phaseDropped)
	}
	return phases, nil
}

// drop forgets what nobody needs any more.
func (s *state) drop(now time.Time, policy Policy) bool {
	expired := func(c *x509.Certificate) bool { return now.After(c.NotAfter) }
	before := len(s.earlier) + len(s.bridges)
	if now.Sub(s.since) >= policy.Announce {
		// All calculators have long signed anew.
		s.earlier = nil
	}
	s.earlier = slices.DeleteFunc(s.earlier, expired)
	s.bridges = slices.DeleteFunc(s.bridges, expired)
	return len(s.earlier)+len(s.bridges) != before
}

// chain are the bridges that lead from the present authority to earlier ones.
func (s *state) chain() []*x509.Certificate {
	var chain []*x509.Certificate
	for subject := s.current.certificate.SubjectKeyId; len(chain) < len(s.bridges); {
		i := slices.IndexFunc(s.bridges, func(b *x509.Certificate) bool { return bytes.Equal(b.SubjectKeyId, subject) })
		if i < 0 {
			break
		}
		chain = append(chain, s.bridges[i])
		subject = s.bridges[i].AuthorityKeyId
	}
	return chain
}

// encode gives the Secret's data and annotations.
func (s *state) encode() (data map[string][]byte, annotations map[string]string, err error) {
	data, annotations = map[string][]byte{}, map[string]string{}
	put := func(certificate, key string, i *issuer) error {
		text, err := encodeKey(i.key)
		data[certificate], data[key] = announcement.FormatAuthorities([]*x509.Certificate{i.certificate}), text
		return err
	}
	if err := put(keyCurrent, keyCurrentKey, s.current); err != nil {
		return nil, nil, err
	}
	annotations[annotationUsed] = s.since.UTC().Format(time.RFC3339Nano)
	if s.next != nil {
		if err := put(keyNext, keyNextKey, s.next); err != nil {
			return nil, nil, err
		}
		annotations[annotationMade] = s.made.UTC().Format(time.RFC3339Nano)
		if s.hurry {
			annotations[annotationHurry] = "true"
		}
	}
	if len(s.earlier) > 0 {
		data[keyEarlier] = announcement.FormatAuthorities(s.earlier)
	}
	if len(s.bridges) > 0 {
		data[keyBridges] = announcement.FormatAuthorities(s.bridges)
	}
	return data, annotations, nil
}

// annotationHurry stays until the exchange that RotateNow asked for.
const annotationHurry = "millrace.io/rotate-now"

// decode reads what encode wrote, or a pair that somebody else put there. The
// error names the field.
func decode(data map[string][]byte, annotations map[string]string) (*state, error) {
	s := &state{hurry: annotations[annotationHurry] != ""}
	var err error
	if s.current, err = decodeIssuer(data[keyCurrent], data[keyCurrentKey]); err != nil {
		return nil, &fieldError{"data[" + keyCurrent + "], data[" + keyCurrentKey + "]", err}
	}
	if len(data[keyNext]) > 0 || len(data[keyNextKey]) > 0 {
		if s.next, err = decodeIssuer(data[keyNext], data[keyNextKey]); err != nil {
			return nil, &fieldError{"data[" + keyNext + "], data[" + keyNextKey + "]", err}
		}
	}
	for _, part := range []struct {
		name string
		list *[]*x509.Certificate
	}{{keyEarlier, &s.earlier}, {keyBridges, &s.bridges}} {
		list, bad := announcement.ParseAuthorities(data[part.name])
		if len(bad) > 0 {
			return nil, &fieldError{"data[" + part.name + "]", fmt.Errorf("%s", bad[0])}
		}
		*part.list = list
	}
	// Without a time the certificate's own tells how old it is.
	s.since = s.current.certificate.NotBefore
	if s.next != nil {
		s.made = s.next.certificate.NotBefore.Add(skew)
	}
	for _, part := range []struct {
		name string
		at   *time.Time
	}{{annotationUsed, &s.since}, {annotationMade, &s.made}} {
		text, ok := annotations[part.name]
		if !ok {
			continue
		}
		if *part.at, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return nil, &fieldError{"metadata.annotations[" + part.name + "]", err}
		}
	}
	return s, nil
}

// fieldError is about a field of the Secret.
type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string { return e.field + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }
