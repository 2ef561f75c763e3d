// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc/status"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

const (
	// renewEvery is how often a new certificate is asked for: it costs a signature,
	// and follows a rotation of the authority.
	renewEvery = time.Hour
	// lookEvery is how often it is tried if there is none, or that is due.
	lookEvery = 2 * time.Second
	signTime  = 10 * time.Second
)

// Certificate is what the agent serves with if it is given none: made in memory,
// signed by the calculators' authority.
type Certificate struct {
	connection Connection
	log        *zap.Logger

	mu     sync.Mutex
	pair   *tls.Certificate
	made   time.Time
	failed string
}

// NewCertificate returns a certificate that is not there yet.
func NewCertificate(connection Connection, log *zap.Logger) *Certificate {
	return &Certificate{connection: connection, log: log, failed: "no calculator has been asked yet"}
}

// Get returns the certificate for a handshake.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pair == nil || time.Now().After(c.pair.Leaf.NotAfter) {
		return nil, errors.New("there is no certificate to serve with: " + c.failed)
	}
	return c.pair, nil
}

// Problems tells why there is no certificate.
func (c *Certificate) Problems() []string {
	if _, err := c.Get(nil); err != nil {
		return []string{fmt.Sprintf("--listen: %v; nobody can call until a calculator has signed one", err)}
	}
	return nil
}

// Run keeps the certificate until ctx ends.
func (c *Certificate) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		c.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look asks for a certificate if one is due and a calculator is there.
func (c *Certificate) look(ctx context.Context) {
	c.mu.Lock()
	due := c.pair == nil || time.Since(c.made) >= renewEvery
	c.mu.Unlock()
	conn, ok := c.connection()
	if !due || !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, signTime)
	defer cancel()
	pair, err := sign(ctx, calculatorv1.NewAccessServiceClient(conn))
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.failed != err.Error() {
			c.log.Warn("no certificate to serve with", zap.Error(err))
		}
		c.failed = err.Error()
		return
	}
	c.log.Debug("new serving certificate", zap.Strings("names", pair.Leaf.DNSNames), zap.Time("expires", pair.Leaf.NotAfter))
	c.pair, c.made, c.failed = pair, time.Now(), "it has expired"
}

// sign makes a key and has a calculator sign its certificate.
func sign(ctx context.Context, calculator calculatorv1.AccessServiceClient) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	signed, err := calculator.SignCertificate(ctx, &calculatorv1.SignCertificateRequest{Request: request})
	if err != nil {
		return nil, fmt.Errorf("have a certificate signed: %s", status.Convert(err).Message())
	}
	pair := &tls.Certificate{Certificate: signed.GetChain(), PrivateKey: key}
	if len(pair.Certificate) == 0 {
		return nil, errors.New("have a certificate signed: the calculator sent none")
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return nil, fmt.Errorf("read the signed certificate: %w", err)
	}
	if !key.PublicKey.Equal(pair.Leaf.PublicKey) {
		return nil, errors.New("have a certificate signed: the calculator signed another key")
	}
	return pair, nil
}
