// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/discovery"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/transport"
	"github.com/millrace-project/millrace/proto/announcement"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// authority makes the certificate of an authority, DER.
func authority(t *testing.T, name string, expires time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: expires.Add(-48 * time.Hour), NotAfter: expires, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func text(ders ...[]byte) string {
	var all []byte
	for _, der := range ders {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return string(all)
}

// mount is a ConfigMap mounted as the kubelet does it: files are links to those
// of a directory, which is exchanged as a whole by renaming a link.
type mount struct {
	*testing.T
	dir string
	n   int
}

func (m *mount) set(files map[string]string) {
	m.Helper()
	m.n++
	content := fmt.Sprintf("..%d", m.n)
	check := func(err error) {
		m.Helper()
		if err != nil {
			m.Fatal(err)
		}
	}
	check(os.Mkdir(filepath.Join(m.dir, content), 0o755))
	for name, text := range files {
		check(os.WriteFile(filepath.Join(m.dir, content, name), []byte(text), 0o644))
	}
	check(os.Symlink(content, filepath.Join(m.dir, "..data_tmp")))
	check(os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")))
	for name := range files {
		if _, err := os.Lstat(filepath.Join(m.dir, name)); err != nil {
			check(os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
		}
	}
	if m.n > 1 {
		check(os.RemoveAll(filepath.Join(m.dir, fmt.Sprintf("..%d", m.n-1))))
	}
}

// hold puts what a calculator told into a store.
func hold(t *testing.T, store *held.Store, content *dataplanev1.Calculators) {
	t.Helper()
	name, entry, err := held.FromProto(&dataplanev1.Resource{
		Name:    &dataplanev1.ResourceName{Type: dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS, Key: "ns/calculators"},
		Content: &dataplanev1.Resource_Calculators{Calculators: content}})
	if err != nil {
		t.Fatal(err)
	}
	batch := held.NewBatch()
	batch.Upsert(name, entry)
	store.Apply(batch)
}

func describe(k discovery.Known) (calculators, authorities []string) {
	for _, c := range k.Calculators {
		calculators = append(calculators, fmt.Sprint(c.Address, c.Origins))
	}
	for _, a := range k.Authorities {
		authorities = append(authorities, fmt.Sprint(a.Certificate.Subject.CommonName, a.Origins))
	}
	return calculators, authorities
}

func wantEqual(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// TestUnion takes together what is known from all places, and leaves out and
// names what cannot be used.
func TestUnion(t *testing.T) {
	t.Parallel()
	soon, later := time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
	first, second, over := authority(t, "first", soon), authority(t, "second", later), authority(t, "over", time.Now().Add(-time.Hour))
	m := &mount{T: t, dir: t.TempDir()}
	store := held.New()
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, []byte(text(first)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := discovery.New(discovery.Options{Static: []string{"10.0.0.9:7700", "10.0.0.1:7700"}, Dir: m.dir,
		TLS: &transport.TLS{CalculatorCA: file}, Store: store, Log: zap.NewNop()})
	known := d.Look() // no ConfigMap yet
	calculators, authorities := describe(known)
	wantEqual(t, "without the ConfigMap", calculators, "10.0.0.1:7700[ORIGIN_STATIC]", "10.0.0.9:7700[ORIGIN_STATIC]")
	wantEqual(t, "without the ConfigMap", authorities, "first[ORIGIN_STATIC]")
	wantEqual(t, "without the ConfigMap", known.Problems)

	m.set(map[string]string{
		announcement.CalculatorsKey: "10.0.0.1:7700\nnonsense\n10.0.0.2:7700\n",
		announcement.AuthoritiesKey: text(second) + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"})
	hold(t, store, &dataplanev1.Calculators{Addresses: []string{"10.0.0.2:7700", "10.0.0.3:7700", "x"}, Authorities: [][]byte{second, over, {1}}})
	known = d.Look()
	calculators, authorities = describe(known)
	wantEqual(t, "calculators", calculators, "10.0.0.1:7700[ORIGIN_STATIC ORIGIN_MOUNTED]", "10.0.0.2:7700[ORIGIN_MOUNTED ORIGIN_HELD]",
		"10.0.0.3:7700[ORIGIN_HELD]", "10.0.0.9:7700[ORIGIN_STATIC]")
	wantEqual(t, "authorities", authorities, "second[ORIGIN_MOUNTED ORIGIN_HELD]", "first[ORIGIN_STATIC]", "over[ORIGIN_HELD]")
	for i, words := range [][]string{{filepath.Join(m.dir, "calculators"), "line 2", "nonsense"}, {filepath.Join(m.dir, "ca.crt"), "certificate 2"},
		{"held calculators ns/calculators", "addresses[2]"}, {"held calculators ns/calculators", "authorities[2]"}, {"over", "held", "expired"}} {
		for _, word := range words {
			if i >= len(known.Problems) || !strings.Contains(known.Problems[i], word) {
				t.Fatalf("problem %d has no %q: %q", i, word, known.Problems)
			}
		}
	}
	// Files that are exchanged count at once.
	m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.4:7700", announcement.AuthoritiesKey: ""})
	calculators, _ = describe(d.Look())
	wantEqual(t, "after a change", calculators, "10.0.0.1:7700[ORIGIN_STATIC]", "10.0.0.2:7700[ORIGIN_HELD]",
		"10.0.0.3:7700[ORIGIN_HELD]", "10.0.0.4:7700[ORIGIN_MOUNTED]", "10.0.0.9:7700[ORIGIN_STATIC]")
	// And so does --tls-ca. What cannot be read is named, all else counts.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	known = d.Look()
	if len(known.Authorities) != 2 || !strings.Contains(strings.Join(known.Problems, "\n"), "--tls-ca") {
		t.Errorf("without the file of --tls-ca: %d authorities, problems %q", len(known.Authorities), known.Problems)
	}
	if _, err := d.Target("10.0.0.4:7700"); err != nil {
		t.Errorf("without the file of --tls-ca: %v", err)
	}
}

// TestNeverPlaintext: where nobody is known who vouches for a calculator, none
// beyond loopback is dialled, and where somebody is, plaintext is not spoken.
func TestNeverPlaintext(t *testing.T) {
	t.Parallel()
	m := &mount{T: t, dir: t.TempDir()}
	m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.1:7700\n127.0.0.1:7700"})
	for _, insecure := range []bool{false, true} {
		d := discovery.New(discovery.Options{Dir: m.dir, TLS: &transport.TLS{Insecure: insecure}, Store: held.New(), Log: zap.NewNop()})
		if _, err := d.Target("10.0.0.1:7700"); (err == nil) != insecure {
			t.Errorf("insecure %v: %v", insecure, err)
		}
		m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.1:7700\n127.0.0.1:7700",
			announcement.AuthoritiesKey: text(authority(t, "ca", time.Now().Add(-time.Hour)))})
		for _, address := range []string{"10.0.0.1:7700", "127.0.0.1:7700"} {
			target, err := d.Target(address)
			if err != nil || target.Credentials.Info().SecurityProtocol != "tls" {
				t.Errorf("insecure %v: %s is dialled by %+v, %v", insecure, address, target.Credentials.Info(), err)
			}
		}
		m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.1:7700\n127.0.0.1:7700"})
		_ = os.Remove(filepath.Join(m.dir, announcement.AuthoritiesKey))
	}
}

// TestWatch tells of changes that the kubelet makes, and of nothing else.
func TestWatch(t *testing.T) {
	t.Parallel()
	m := &mount{T: t, dir: filepath.Join(t.TempDir(), "mount")}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := discovery.New(discovery.Options{Dir: m.dir, TLS: &transport.TLS{}, Store: held.New(), Log: zap.NewNop()})
	done := make(chan struct{})
	go func() { defer close(done); d.Watch(t.Context()) }()
	for i := range 3 {
		m.set(map[string]string{announcement.CalculatorsKey: fmt.Sprintf("10.0.0.%d:7700", i+1)})
		select {
		case <-d.Changed():
		case <-time.After(20 * time.Second):
			t.Fatalf("change %d was not told", i)
		}
	}
	// The same once more is no change; what comes after it is the only one.
	m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.3:7700"})
	m.set(map[string]string{announcement.CalculatorsKey: "10.0.0.9:7700"})
	select {
	case <-d.Changed():
	case <-time.After(20 * time.Second):
		t.Fatal("the last change was not told")
	}
	wantEqual(t, "addresses", d.Addresses(), "10.0.0.9:7700")
}

func TestCheck(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, ok := range map[string]bool{"": true, t.TempDir(): true, "/nonexistent/dir": true, "relative": false, file: false} {
		if err := discovery.Check(dir); (err == nil) != ok {
			t.Errorf("%q: %v", dir, err)
		}
	}
}
