// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/millrace-project/millrace/proto/announcement"
)

// explaining are credentials that say, when a calculator's certificate is
// refused, which one it was and whom it should have come from.
type explaining struct {
	credentials.TransportCredentials
	authorities []*x509.Certificate
}

// ClientHandshake implements credentials.TransportCredentials.
func (e explaining) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := e.TransportCredentials.ClientHandshake(ctx, authority, conn)
	var refused *tls.CertificateVerificationError
	if errors.As(err, &refused) && len(refused.UnverifiedCertificates) > 0 {
		err = e.explain(refused)
	}
	return secure, info, err
}

func (e explaining) explain(refused *tls.CertificateVerificationError) error {
	shown := refused.UnverifiedCertificates[0]
	var unknown x509.UnknownAuthorityError
	if !errors.As(refused.Err, &unknown) {
		return fmt.Errorf("the calculator's certificate %q, issued by %q, is refused: %w", shown.Subject, shown.Issuer, refused.Err)
	}
	trusted := ""
	for i, authority := range e.authorities {
		if i == 3 {
			trusted += fmt.Sprintf(" and %d more", len(e.authorities)-i)
			break
		}
		trusted += fmt.Sprintf(" %q (SHA-256 %s)", authority.Subject, announcement.Fingerprint(authority)[:16])
	}
	return fmt.Errorf("who answers shows a certificate %q, issued by %q, for which no authority vouches that this agent trusts; those are%s: %w",
		shown.Subject, shown.Issuer, trusted, refused.Err)
}

// Clone implements credentials.TransportCredentials.
func (e explaining) Clone() credentials.TransportCredentials {
	return explaining{e.TransportCredentials.Clone(), e.authorities}
}
