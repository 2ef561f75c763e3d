// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/millrace-project/millrace/test/certs"
)

// certificates are the files of a CA and of one certificate for all, as large
// as those of an installation.
type certificates struct{ ca, cert, key string }

func makeCertificates(t *testing.T, ip net.IP) certificates {
	t.Helper()
	dir := t.TempDir()
	c := certificates{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")}
	ca, err := certs.NewAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pkix.Name{CommonName: "millrace"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, ip)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(c.ca, ca.PEM(), 0o600), pair.Write(dir, "tls")); err != nil {
		t.Fatal(err)
	}
	return c
}
