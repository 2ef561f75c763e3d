// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/millrace-project/millrace/proto/announcement"
)

// skew is how far clocks may be apart: certificates are valid from so long
// before they were made.
const skew = time.Hour

// issuer is an authority's certificate with its key.
type issuer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// newIssuer makes an authority of its own.
func newIssuer(now time.Time, lifetime time.Duration) (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of an authority: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Each has a name of its own, so that nothing takes one for another.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Millrace calculators %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	certificate, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of an authority: %w", err)
	}
	return &issuer{certificate, key}, nil
}

// until bounds the end of a certificate that the authority signs by its own.
func (i *issuer) until(end time.Time) time.Time {
	if i.certificate.NotAfter.Before(end) {
		return i.certificate.NotAfter
	}
	return end
}

// vouch makes a certificate by which whoever trusts this authority trusts the
// other one.
func (i *issuer) vouch(other *x509.Certificate) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	bridge, err := sign(&x509.Certificate{
		SerialNumber:          serial,
		Subject:               other.Subject,
		NotBefore:             other.NotBefore,
		NotAfter:              i.until(other.NotAfter),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              other.KeyUsage,
		SubjectKeyId:          other.SubjectKeyId,
	}, i.certificate, other.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("vouching for the next authority: %w", err)
	}
	return bridge, nil
}

// serve makes the certificate that a calculator shows.
func (i *issuer) serve(now time.Time, lifetime time.Duration, addresses []net.IP, bridges []*x509.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key to serve with: %w", err)
	}
	leaf, err := i.server(now, lifetime, key.Public(), []string{announcement.ServerName, "localhost"}, addresses)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate to serve with: %w", err)
	}
	chain := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, bridge := range bridges {
		chain.Certificate = append(chain.Certificate, bridge.Raw)
	}
	return chain, nil
}

// server signs a server's certificate for these names, the first of which is its
// common name too, and addresses.
func (i *issuer) server(now time.Time, lifetime time.Duration, public crypto.PublicKey, names []string, addresses []net.IP) (*x509.Certificate, error) {
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	return sign(&x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: names[0]},
		NotBefore:    now.Add(-skew),
		NotAfter:     i.until(now.Add(lifetime)),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     names,
		IPAddresses:  addresses,
	}, i.certificate, public, i.key)
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func serialNumber() (*big.Int, error) {
	// The highest bit is set, so that all are of one length.
	top := new(big.Int).Lsh(big.NewInt(1), 119)
	serial, err := rand.Int(rand.Reader, top)
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return serial.Add(serial, top), nil
}

// encodeKey is a key, PEM.
func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// decodeIssuer reads an authority's certificate and key, and demands that they
// belong together.
func decodeIssuer(certificate, key []byte) (*issuer, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	if !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%q is no authority's certificate", pair.Leaf.Subject)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key cannot sign")
	}
	return &issuer{pair.Leaf, signer}, nil
}
