// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/millrace-project/millrace/proto/access"
)

// Gate returns the gate of the agent's TCP listener: who shows a certificate of
// the operator's CA may read. Denied is told of refused calls.
func Gate(denied func(ctx context.Context, method string, caller access.Caller, err error)) *access.Gate {
	return &access.Gate{
		Authenticate: func(ctx context.Context) (access.Caller, error) {
			p, ok := peer.FromContext(ctx)
			if ok {
				info, ok := p.AuthInfo.(credentials.TLSInfo)
				if ok && len(info.State.VerifiedChains) > 0 {
					return access.Certified(info.State.VerifiedChains[0][0].Subject), nil
				}
			}
			return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonNoCredential, "no certificate is shown that --tls-client-ca knows")
		},
		Permit: func(context.Context, access.Caller, string, string) error { return nil },
		Denied: denied,
	}
}
