// SPDX-License-Identifier: Apache-2.0

// Package discovery knows where calculators are and whom to trust as one. It
// has that from three places, none of which needs the API server, a Service's
// address or the cluster's DNS: the command line, the ConfigMap in which
// calculators announce themselves, mounted by the kubelet, and what a calculator
// told of the same before, which is in the agent's log. All that any of them
// says counts: an address that is out of date costs an attempt, and who answers
// there is not trusted.
package discovery

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	"github.com/millrace-project/millrace/agent/internal/transport"
	"github.com/millrace-project/millrace/proto/announcement"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Options say where to look.
type Options struct {
	// Static are addresses of the command line.
	Static []string
	// Dir is where the calculators' ConfigMap is mounted; empty for nowhere.
	Dir string
	// TLS are the flags.
	TLS *transport.TLS
	// Store has what calculators told.
	Store *held.Store
	Log   *zap.Logger
}

// Discovery implements syncclient.Discovery.
type Discovery struct {
	Options
	changed chan struct{}
	seen    string // of the directory's files; Watch's own

	mu     sync.Mutex
	logged []string // the last problems
}

var _ syncclient.Discovery = (*Discovery)(nil)

// New returns a discovery. It looks whenever it is asked.
func New(options Options) *Discovery {
	d := &Discovery{Options: options, changed: make(chan struct{}, 1)}
	d.seen = d.fingerprint()
	return d
}

// Known is all that is known at a moment.
type Known struct {
	// Calculators are addresses, sorted.
	Calculators []Calculator
	// Authorities are sorted, those valid longest first.
	Authorities []Authority
	// Problems are what of it cannot be used, and why.
	Problems []string
}

// Calculator is an address with who says so.
type Calculator struct {
	Address string
	Origins []agentv1.Origin
}

// Authority is a certificate with who says so.
type Authority struct {
	Certificate *x509.Certificate
	Origins     []agentv1.Origin
}

// maxFile is the most that is read of a file: what a ConfigMap may hold.
const maxFile = 1 << 20

// Look reads everything anew.
func (d *Discovery) Look() Known {
	k := &Known{}
	for _, address := range d.Static {
		k.addAddress(address, agentv1.Origin_ORIGIN_STATIC)
	}
	list, err := d.TLS.Authorities()
	if err != nil {
		k.problem("%v", err)
	}
	for _, certificate := range list {
		k.addAuthority(certificate, agentv1.Origin_ORIGIN_STATIC)
	}
	d.lookMounted(k)
	d.lookHeld(k)
	now := time.Now()
	for _, a := range k.Authorities {
		if now.After(a.Certificate.NotAfter) {
			k.problem("certificate authority %q (SHA-256 %s), %s, expired at %s: no calculator is trusted by it",
				a.Certificate.Subject, announcement.Fingerprint(a.Certificate), origins(a.Origins), a.Certificate.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	slices.SortFunc(k.Calculators, func(a, b Calculator) int { return strings.Compare(a.Address, b.Address) })
	slices.SortStableFunc(k.Authorities, func(a, b Authority) int { return b.Certificate.NotAfter.Compare(a.Certificate.NotAfter) })
	d.report(k.Problems)
	return *k
}

func (k *Known) problem(format string, args ...any) {
	k.Problems = append(k.Problems, fmt.Sprintf(format, args...))
}

func (k *Known) addAddress(address string, from agentv1.Origin) {
	for i := range k.Calculators {
		if c := &k.Calculators[i]; c.Address == address {
			c.Origins = addOrigin(c.Origins, from)
			return
		}
	}
	k.Calculators = append(k.Calculators, Calculator{address, []agentv1.Origin{from}})
}

func (k *Known) addAuthority(certificate *x509.Certificate, from agentv1.Origin) {
	for i := range k.Authorities {
		if a := &k.Authorities[i]; a.Certificate.Equal(certificate) {
			a.Origins = addOrigin(a.Origins, from)
			return
		}
	}
	k.Authorities = append(k.Authorities, Authority{certificate, []agentv1.Origin{from}})
}

func addOrigin(list []agentv1.Origin, from agentv1.Origin) []agentv1.Origin {
	if slices.Contains(list, from) {
		return list
	}
	return append(list, from)
}

// lookMounted reads the files. A ConfigMap that is not there yet, and so a
// directory without them, is nothing wrong.
func (d *Discovery) lookMounted(k *Known) {
	if d.Dir == "" {
		return
	}
	addresses, bad := announcement.ParseAddresses(string(d.file(k, announcement.CalculatorsKey)))
	for _, b := range bad {
		k.problem("%s: %s: left out", filepath.Join(d.Dir, announcement.CalculatorsKey), b)
	}
	for _, address := range addresses {
		k.addAddress(address, agentv1.Origin_ORIGIN_MOUNTED)
	}
	authorities, bad := announcement.ParseAuthorities(d.file(k, announcement.AuthoritiesKey))
	for _, b := range bad {
		k.problem("%s: %s: left out", filepath.Join(d.Dir, announcement.AuthoritiesKey), b)
	}
	for _, certificate := range authorities {
		k.addAuthority(certificate, agentv1.Origin_ORIGIN_MOUNTED)
	}
}

func (d *Discovery) file(k *Known, name string) []byte {
	path := filepath.Join(d.Dir, name)
	info, err := os.Stat(path)
	var text []byte
	switch {
	case err == nil && !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no file", path)
	case err == nil && info.Size() > maxFile:
		err = fmt.Errorf("%s has %d bytes, more than the %d that a ConfigMap may hold", path, info.Size(), maxFile)
	case err == nil:
		text, err = os.ReadFile(path)
	}
	if err != nil && !os.IsNotExist(err) {
		k.problem("--calculators-dir: %v", err)
		return nil
	}
	return text
}

// lookHeld reads what calculators told.
func (d *Discovery) lookHeld(k *Known) {
	const kind = dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS
	for _, key := range d.Store.Keys(kind) {
		resource, err := d.Store.Get(held.Name{Type: kind, Key: key})
		if err != nil {
			k.problem("%v", err)
			continue
		}
		for i, text := range resource.GetCalculators().GetAddresses() {
			address, err := announcement.ParseAddress(text)
			if err != nil {
				k.problem("held calculators %s: addresses[%d]: %v: left out", key, i, err)
				continue
			}
			k.addAddress(address, agentv1.Origin_ORIGIN_HELD)
		}
		for i, der := range resource.GetCalculators().GetAuthorities() {
			certificate, err := announcement.ParseAuthority(der)
			if err != nil {
				k.problem("held calculators %s: authorities[%d]: %v: left out", key, i, err)
				continue
			}
			k.addAuthority(certificate, agentv1.Origin_ORIGIN_HELD)
		}
	}
}

// report logs problems once, and that they are gone.
func (d *Discovery) report(problems []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if slices.Equal(problems, d.logged) {
		return
	}
	d.logged = problems
	if len(problems) == 0 {
		d.Log.Info("what is known of calculators can be used again")
		return
	}
	d.Log.Warn("some of what is known of calculators cannot be used", zap.Strings("problems", problems))
}

func origins(list []agentv1.Origin) string {
	words := map[agentv1.Origin]string{agentv1.Origin_ORIGIN_STATIC: "of the command line",
		agentv1.Origin_ORIGIN_MOUNTED: "mounted", agentv1.Origin_ORIGIN_HELD: "held"}
	var texts []string
	for _, o := range list {
		texts = append(texts, words[o])
	}
	return strings.Join(texts, " and ")
}

// Addresses implements syncclient.Discovery.
func (d *Discovery) Addresses() []string {
	known := d.Look()
	addresses := make([]string, 0, len(known.Calculators))
	for _, c := range known.Calculators {
		addresses = append(addresses, c.Address)
	}
	return addresses
}

// Target implements syncclient.Discovery.
func (d *Discovery) Target(address string) (syncclient.Target, error) {
	known := d.Look()
	trust := transport.Trust{}
	for _, a := range known.Authorities {
		trust.Authorities = append(trust.Authorities, a.Certificate)
	}
	for _, c := range known.Calculators {
		// The command line may name an address in front of others; calculators
		// announce only their own.
		if c.Address == address && !slices.Equal(c.Origins, []agentv1.Origin{agentv1.Origin_ORIGIN_STATIC}) {
			trust.Name = announcement.ServerName
		}
	}
	dial, credentials, err := d.TLS.Dial(address, trust)
	return syncclient.Target{Address: address, Dial: dial, Credentials: credentials}, err
}

// Changed implements syncclient.Discovery.
func (d *Discovery) Changed() <-chan struct{} { return d.changed }

// Check tells what is wrong with the directory as such.
func Check(dir string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("--calculators-dir: %q must be an absolute path or empty", dir)
	}
	info, err := os.Stat(dir)
	switch {
	case os.IsNotExist(err):
		return nil // it may come
	case err != nil:
		return fmt.Errorf("--calculators-dir: %w", err)
	case !info.IsDir():
		return fmt.Errorf("--calculators-dir: %s is no directory", dir)
	}
	return nil
}
