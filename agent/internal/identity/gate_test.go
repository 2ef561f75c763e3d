// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/millrace-project/millrace/proto/access"
)

// TestGate: who has shown a certificate that was verified may be a reader, a
// node's agent is one, and others are nobody.
func TestGate(t *testing.T) {
	gate := Gate(nil, nil)
	as := func(info credentials.AuthInfo) (access.Caller, error) {
		return gate.Authenticate(peer.NewContext(context.Background(), &peer.Peer{Addr: &net.TCPAddr{}, AuthInfo: info}))
	}
	verified := func(name string) credentials.TLSInfo {
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
		return credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{leaf}}}}
	}
	caller, err := as(verified("operator"))
	if err != nil || caller.Kind != access.Account || gate.Permit(context.Background(), caller, access.Get, "/s/M") != nil {
		t.Errorf("a certificate: %+v, %v; want an account that may read", caller, err)
	}
	if caller, err := as(verified("system:node:n1")); err != nil || caller.Kind != access.Agent {
		t.Errorf("a node's certificate: %+v, %v; want an agent", caller, err)
	}
	unverified := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "operator"}}}}}
	for name, info := range map[string]credentials.AuthInfo{"no certificate": credentials.TLSInfo{}, "one that was not verified": unverified, "no TLS": nil} {
		if caller, err := as(info); access.ReasonOf(err) != access.ReasonNoCredential {
			t.Errorf("%s: %+v, %v; want reason %s", name, caller, err, access.ReasonNoCredential)
		}
	}
}
