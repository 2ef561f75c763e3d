// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/proto/announcement"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// knownCalculators tells where an agent looks for calculators, and who says so.
func knownCalculators(list []*agentv1.KnownCalculator) *table {
	t := &table{header: []string{"ADDRESS", "FROM"}}
	for _, c := range list {
		t.row(c.GetAddress(), origins(c.GetOrigins()))
	}
	return t
}

// trustedAuthorities tells whom an agent trusts to vouch for a calculator.
func (a *App) trustedAuthorities(list []*agentv1.TrustedAuthority) *table {
	t := &table{header: []string{"SUBJECT", "EXPIRES", "FROM", "SHA-256"}}
	for _, c := range list {
		t.row(c.GetSubject(), a.expiry(c.GetExpireTime()), origins(c.GetOrigins()), c.GetFingerprint())
	}
	return t
}

func origins(list []agentv1.Origin) string {
	var words []string
	for _, o := range list {
		words = append(words, enumWord(o.String(), "ORIGIN_", "unknown"))
	}
	return strings.Join(words, ",")
}

// expiry prints when something expires, and how soon that is.
func (a *App) expiry(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	day, left := t.AsTime().UTC().Format(time.DateOnly), t.AsTime().Sub(a.Now())
	switch {
	case left <= 0:
		return day + ", expired"
	case left < 48*time.Hour:
		return fmt.Sprintf("%s, in %s", day, left.Round(time.Minute))
	}
	return fmt.Sprintf("%s, in %d days", day, int(left.Hours())/24)
}

// trustLines tells what agents find and trust calculators by.
func (a *App) trustLines(t *calculatorv1.Trust) [][2]string {
	if t == nil {
		return nil
	}
	authority := "Secret " + t.GetSecret()
	if t.GetSecret() == "" {
		authority = "none of the calculators' own"
	}
	return [][2]string{
		{"certificate", "expires " + orNone(a.expiry(t.GetServingExpireTime()))},
		{"authority", authority},
		{"announced", orNone(strings.Join(t.GetAddresses(), ",")) + " in ConfigMap " + orNone(t.GetConfigMap())},
	}
}

func (a *App) authorities(list []*calculatorv1.Authority) *table {
	t := &table{header: []string{"SUBJECT", "USE", "EXPIRES", "SHA-256"}}
	for _, c := range list {
		t.row(c.GetSubject(), enumWord(c.GetRole().String(), "AUTHORITY_ROLE_", "unknown"), a.expiry(c.GetExpireTime()), c.GetFingerprint())
	}
	return t
}

func calculatorsLine(c *dataplanev1.Calculators) string {
	var prints []string
	for _, der := range c.GetAuthorities() {
		text := "no certificate"
		if certificate, err := x509.ParseCertificate(der); err == nil {
			text = announcement.Fingerprint(certificate)
		}
		prints = append(prints, text)
	}
	return "at " + orNone(strings.Join(c.GetAddresses(), ",")) + ", authorities " + orNone(strings.Join(prints, ","))
}
