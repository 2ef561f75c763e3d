// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/millrace-project/millrace/proto/access"
)

// Gate returns the gate of the agent's TCP listener. Who shows a certificate of
// the operator's CA may read; a token is reviewed, by a calculator.
func Gate(tokens *Reviewer, denied func(ctx context.Context, method string, caller access.Caller, err error)) *access.Gate {
	return &access.Gate{
		Authenticate: authenticate,
		Permit: func(ctx context.Context, _ access.Caller, _, method string) error {
			if token, shown := tokenOf(ctx); shown {
				return tokens.review(ctx, token, method)
			}
			return nil
		},
		Denied: denied,
	}
}

// tokenOf returns the token of a call; empty if it is not readable, false if
// there is none.
func tokenOf(ctx context.Context) (token string, shown bool) {
	headers := metadata.ValueFromIncomingContext(ctx, access.Header)
	if len(headers) != 1 {
		return "", len(headers) > 0
	}
	token, _ = access.Token(headers[0])
	return token, true
}

func authenticate(ctx context.Context) (access.Caller, error) {
	refused := access.Deny(codes.Unauthenticated, access.ReasonNoCredential, "neither a service account's token nor a certificate is shown")
	p, ok := peer.FromContext(ctx)
	if !ok {
		return access.Caller{}, refused
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return access.Caller{}, refused
	}
	token, shown := tokenOf(ctx)
	switch {
	case shown && token == "":
		return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonTokenMalformed, "the authorization header must be of the form \"Bearer TOKEN\"")
	case shown:
		// Whose it is shows if the RPC is one for readers.
		return access.Caller{Kind: access.Account, Name: "bearer of a token"}, nil
	case len(info.State.VerifiedChains) > 0:
		return access.Certified(info.State.VerifiedChains[0][0].Subject), nil
	}
	return access.Caller{}, refused
}
