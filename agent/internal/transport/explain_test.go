// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"strings"
	"testing"

	"github.com/millrace-project/millrace/proto/announcement"
)

// TestRefusalsAreExplained says whose certificate was refused, and whose it
// should have been.
func TestRefusalsAreExplained(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	cert, key := ca.leaf("calculator")
	config, err := (&TLS{Cert: cert, Key: key}).Server("--listen", "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	address := serve(t, config)
	trusted, err := (&TLS{CalculatorCA: other.file}).Authorities()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		flags TLS
		words []string
	}{
		"foreign authority": {TLS{CalculatorCA: other.file, CalculatorName: "calculator"},
			[]string{"CN=calculator", "CN=ca", "no authority vouches", announcement.Fingerprint(trusted[0])[:16]}},
		"wrong name": {TLS{CalculatorCA: ca.file, CalculatorName: "another"}, []string{"CN=calculator", "is refused", "another"}},
	} {
		target, creds, err := c.flags.Dial(address, Trust{})
		if err != nil {
			t.Fatal(err)
		}
		err = call(t, target, creds.Clone())
		for _, word := range c.words {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: no %q in %v", name, word, err)
			}
		}
	}
	vouching, err := (&TLS{CalculatorCA: ca.file}).Authorities()
	if err != nil {
		t.Fatal(err)
	}
	// An authority that is announced counts like one of the flags.
	target, creds, err := (&TLS{CalculatorCA: other.file}).Dial(address, Trust{Authorities: vouching, Name: "calculator"})
	if err != nil {
		t.Fatal(err)
	}
	if err := call(t, target, creds); err != nil {
		t.Error(err)
	}
}
