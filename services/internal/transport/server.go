// SPDX-License-Identifier: Apache-2.0

// Package transport decides how servers listen: with TLS, or in plaintext where
// nobody else can listen in.
package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// ServerFlags are the flags of a server on TCP.
type ServerFlags struct {
	// CertFile and KeyFile turn TLS on.
	CertFile, KeyFile string
	// ClientCAFile makes it mutual.
	ClientCAFile string
	// Insecure allows plaintext beyond loopback.
	Insecure bool
	// Certificate gives the server's certificate where it does not come from
	// files; nil if it does.
	Certificate func() (*tls.Certificate, error)
}

// Register adds the flags.
func (f *ServerFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&f.CertFile, "tls-cert", "", "file of the server's certificate chain, PEM; turns TLS on, with --tls-key")
	flags.StringVar(&f.KeyFile, "tls-key", "", "file of the key of --tls-cert, PEM")
	flags.StringVar(&f.ClientCAFile, "tls-client-ca", "", "file of the CA certificates that clients' certificates must come from, PEM; one of system:node:NAME is that node's agent's, others are users'; clients without one need a token")
	flags.BoolVar(&f.Insecure, "insecure", false, "allow plaintext on --listen although others can listen in")
}

// Credentials returns how to listen on a TCP address. It refuses plaintext on
// an address that is not loopback, unless told otherwise.
func (f *ServerFlags) Credentials(address string) (credentials.TransportCredentials, error) {
	host, _, err := CheckAddress("--listen", address)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Certificate != nil:
	case f.CertFile == "" && f.KeyFile == "" && f.ClientCAFile == "":
		if !f.Insecure && !isLoopback(host) {
			return nil, fmt.Errorf("--listen: %q is not loopback, so --tls-cert and --tls-key are needed, or --insecure", address)
		}
		return insecure.NewCredentials(), nil
	case f.CertFile == "" || f.KeyFile == "":
		return nil, errors.New("--tls-cert and --tls-key must be given together, --tls-client-ca only with them")
	default:
		if _, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile); err != nil {
			return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
	}
	config := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.Serving() },
	}
	if f.ClientCAFile != "" {
		pem, err := os.ReadFile(f.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("--tls-client-ca: %w", err)
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-client-ca: %s holds no certificate in PEM form", f.ClientCAFile)
		}
		// Others show a token.
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return credentials.NewTLS(config), nil
}

// Serving returns the certificate to show. It is asked for at each handshake,
// and files are read each time, so that a renewed certificate is used without a
// restart.
func (f *ServerFlags) Serving() (*tls.Certificate, error) {
	if f.Certificate != nil {
		return f.Certificate()
	}
	pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("loading the server's certificate: %w", err)
	}
	return &pair, nil
}

// CheckAddress gives host and port of a flag's address if one can listen on it.
func CheckAddress(flag, address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %q must be HOST:PORT", flag, address)
	}
	number, err := net.LookupPort("tcp", service)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %q must be HOST:PORT with a port of 0 to 65535", flag, address)
	}
	return host, uint16(number), nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
