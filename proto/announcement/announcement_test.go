// SPDX-License-Identifier: Apache-2.0

package announcement_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/proto/announcement"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	text := "10.0.0.1:7700 # first\n\n[fd00:0::1]:7700\n10.0.0.1:07700\nhost\ncalc.example:1\n0.0.0.0:1\n[fe80::1%eth0]:1\n-x:1\n10.0.0.2:0\n:7700\n[::ffff:10.0.0.3]:7"
	addresses, bad := announcement.ParseAddresses(text)
	if want := []string{"10.0.0.1:7700", "[fd00::1]:7700", "calc.example:1", "10.0.0.3:7"}; !slices.Equal(addresses, want) {
		t.Errorf("addresses %q, want %q", addresses, want)
	}
	var parts []string
	for _, b := range bad {
		parts = append(parts, b.Part)
	}
	if want := []string{"line 5", "line 7", "line 8", "line 9", "line 10", "line 11"}; !slices.Equal(parts, want) {
		t.Errorf("bad parts %q, want %q: %v", parts, want, bad)
	}
	again, bad := announcement.ParseAddresses(announcement.FormatAddresses(addresses))
	if len(bad) > 0 || !slices.Equal(again, addresses) {
		t.Errorf("written and read again: %q %v", again, bad)
	}
}

func TestTooManyAddresses(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	for i := range announcement.MaxAddresses + 5 {
		fmt.Fprintf(&text, "10.0.%d.%d:1\n", i/256, i%256)
	}
	addresses, bad := announcement.ParseAddresses(text.String())
	if len(addresses) != announcement.MaxAddresses || len(bad) != 1 {
		t.Errorf("%d addresses and %v", len(addresses), bad)
	}
}

func certificate(t *testing.T, isCA bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"},
		NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAuthorities(t *testing.T) {
	t.Parallel()
	first, second := certificate(t, true), certificate(t, true)
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	text := slices.Concat([]byte("# first\n"), first, key, broken, certificate(t, false), first, second)
	list, bad := announcement.ParseAuthorities(text)
	if len(list) != 2 || !slices.Equal(announcement.FormatAuthorities(list), slices.Concat(first, second)) {
		t.Errorf("%d certificates, want the two", len(list))
	}
	if len(bad) != 3 || bad[0].Part != "certificate 2" || bad[1].Part != "certificate 3" || bad[2].Part != "certificate 4" {
		t.Errorf("bad: %v", bad)
	}
	if list, bad := announcement.ParseAuthorities([]byte("nothing")); len(list) != 0 || len(bad) != 1 {
		t.Errorf("of a text without certificates: %v %v", list, bad)
	}
	if list, bad := announcement.ParseAuthorities([]byte("\n")); len(list)+len(bad) != 0 {
		t.Errorf("of an empty text: %v %v", list, bad)
	}
}
