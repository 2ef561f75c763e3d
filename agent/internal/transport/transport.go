// SPDX-License-Identifier: Apache-2.0

// Package transport decides how to listen and dial: with TLS, or in plaintext
// where nobody else can listen in.
package transport

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/millrace-project/millrace/proto/announcement"
)

// TLS names the files of certificates and keys, all PEM.
type TLS struct {
	// Cert and Key are shown to clients, and to calculators that ask.
	Cert, Key string
	// ClientCA makes clients show a certificate of these.
	ClientCA string
	// CalculatorCA is what a calculator's certificate must come from; turns TLS
	// on towards calculators.
	CalculatorCA string
	// CalculatorName is the name expected in it, if not the host dialled.
	CalculatorName string
	// Insecure allows plaintext beyond loopback.
	Insecure bool
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Check tells what is wrong with the flags as such.
func (t *TLS) Check() error {
	if (t.Cert == "") != (t.Key == "") {
		return errors.New("--tls-cert and --tls-key must be given together")
	}
	if t.ClientCA != "" && t.Cert == "" {
		return errors.New("--tls-client-ca needs --tls-cert and --tls-key")
	}
	if t.Cert != "" {
		if _, err := tls.LoadX509KeyPair(t.Cert, t.Key); err != nil {
			return fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
	}
	return nil
}

func pool(flag, file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: %s holds no certificate in PEM form", flag, file)
	}
	return p, nil
}

// pair reads the certificate at each handshake, so that a renewed one is used
// without a restart.
func (t *TLS) pair() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	return &pair, nil
}

// Server returns how to serve on a TCP address, nil for plaintext.
func (t *TLS) Server(flag, address string) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %q is not HOST:PORT", flag, address)
	}
	if t.Cert == "" {
		if !t.Insecure && !loopback(host) {
			return nil, fmt.Errorf("%s: %q is not loopback: give --tls-cert and --tls-key, or --insecure for plaintext", flag, address)
		}
		return nil, nil
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.pair() },
	}
	if t.ClientCA != "" {
		if config.ClientCAs, err = pool("--tls-client-ca", t.ClientCA); err != nil {
			return nil, err
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config, nil
}

// Trust is what is known of calculators beside the flags.
type Trust struct {
	// Authorities are what a calculator's certificate may come from, beside those
	// of CalculatorCA.
	Authorities []*x509.Certificate
	// Name is expected in the certificate, unless the flags name another; if it is
	// empty, the host that is dialled.
	Name string
}

// ErrNoAuthority says that nobody is known who could vouch for a calculator.
var ErrNoAuthority = errors.New("no certificate authority is known that calculators' certificates come from")

// Authorities returns those of the flags.
func (t *TLS) Authorities() ([]*x509.Certificate, error) {
	if t.CalculatorCA == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(t.CalculatorCA)
	if err != nil {
		return nil, fmt.Errorf("--tls-ca: %w", err)
	}
	list, bad := announcement.ParseAuthorities(pem)
	if len(bad) > 0 {
		return list, fmt.Errorf("--tls-ca: %s: %s", t.CalculatorCA, bad[0])
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("--tls-ca: %s holds no certificate in PEM form", t.CalculatorCA)
	}
	return list, nil
}

// Dial returns how to dial a calculator: "unix:/path" or "host:port". Files are
// read anew, so that a change counts for the next dial. Where an authority is
// known TLS is spoken, whatever else is allowed.
func (t *TLS) Dial(address string, trust Trust) (target string, creds credentials.TransportCredentials, err error) {
	if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		path := "/" + strings.TrimLeft(rest, "/")
		if len(path) < 2 || !strings.HasPrefix(rest, "/") {
			return "", nil, fmt.Errorf("--calculator: %q must be unix:/path or HOST:PORT", address)
		}
		return "unix://" + path, insecure.NewCredentials(), nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" || port == "" {
		return "", nil, fmt.Errorf("--calculator: %q must be unix:/path or HOST:PORT", address)
	}
	target = "dns:///" + address
	if net.ParseIP(host) != nil {
		target = "passthrough:///" + address
	}
	authorities, err := t.Authorities()
	if err != nil && len(authorities)+len(trust.Authorities) == 0 {
		return "", nil, err
	}
	authorities = append(authorities, trust.Authorities...)
	if len(authorities) == 0 {
		if !t.Insecure && !loopback(host) {
			return "", nil, fmt.Errorf("--calculator: %q is not loopback: give --tls-ca or --calculators-dir, or --insecure for plaintext: %w", address, ErrNoAuthority)
		}
		return target, insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: cmp.Or(t.CalculatorName, trust.Name, host), RootCAs: x509.NewCertPool()}
	for _, authority := range authorities {
		config.RootCAs.AddCert(authority)
	}
	if t.Cert != "" {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.pair() }
	}
	return target, explaining{credentials.NewTLS(config), authorities}, nil
}

// ListenUnix listens on a unix socket that only its owner and group can use. A
// socket that nobody serves any more is replaced.
func ListenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s exists and is no socket", path)
	case err == nil:
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close() //nolint:errcheck // it was a question
			return nil, fmt.Errorf("somebody serves on socket %s already", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("probe socket %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove old socket: %w", err)
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		listener.Close() //nolint:errcheck // the first error is told
		return nil, fmt.Errorf("set mode of socket: %w", err)
	}
	return listener, nil
}
