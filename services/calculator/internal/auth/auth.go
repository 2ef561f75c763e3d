// SPDX-License-Identifier: Apache-2.0

// Package auth finds out who calls a calculator. Tokens are reviewed by the API
// server (TokenReview), which also says what accounts may read
// (SubjectAccessReview); its answers are remembered, so that agents can connect
// while it is away. What a kind of caller may do is package access's.
package auth

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	authenticationv1client "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationv1client "k8s.io/client-go/kubernetes/typed/authorization/v1"

	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/access"
)

// Options configures an Authenticator.
type Options struct {
	// Tokens and Rights ask the API server; nil if there is none, so that only
	// certificates count.
	Tokens authenticationv1client.TokenReviewInterface
	Rights authorizationv1client.SubjectAccessReviewInterface
	// Audience is what tokens must be issued for, AgentAudience what those that are
	// shown to agents.
	Audience, AgentAudience string
	// AgentAccount is the user name of the agents' service account.
	AgentAccount string
	// SetProblems is told what is wrong with reviews, and that nothing is. It may
	// be nil.
	SetProblems func([]problem.Problem)
	// Log gets refused calls.
	Log *zap.Logger
	// Registry gets the metrics.
	Registry prometheus.Registerer
}

// Authenticator says who calls.
type Authenticator struct {
	Options
	metrics *metrics
	tokens  *answers[access.Caller]
	rights  *answers[struct{}]
	denials *denials
	trouble trouble
}

// ServiceAccount is the user name of a service account given as
// NAMESPACE:NAME.
func ServiceAccount(account string) (user string, err error) {
	namespace, name, ok := strings.Cut(account, ":")
	if !ok || namespace == "" || name == "" || strings.ContainsAny(name, ":/ ") || strings.ContainsAny(namespace, "/ ") {
		return "", fmt.Errorf("%q must be NAMESPACE:NAME", account)
	}
	return "system:serviceaccount:" + account, nil
}

// New returns an Authenticator.
func New(options Options) *Authenticator {
	a := &Authenticator{Options: options, metrics: newMetrics(options.Registry)}
	a.denials = newDenials(options.Log, a.metrics)
	slots := make(chan struct{}, parallelReviews)
	a.tokens = newAnswers[access.Caller](slots, a.metrics.remembered("token"), a.reviewed)
	a.rights = newAnswers[struct{}](slots, a.metrics.remembered("access"), a.reviewed)
	a.trouble.set = options.SetProblems
	return a
}

// Local returns the gate of a listener that only operators reach.
func (a *Authenticator) Local() *access.Gate {
	gate := access.Local()
	gate.Denied = a.denials.note
	return gate
}

// Gate returns the gate of a listener with TLS.
func (a *Authenticator) Gate() *access.Gate {
	return &access.Gate{Authenticate: a.authenticate, Permit: a.permit, Denied: a.denials.note}
}

// authenticate finds out who calls: by the token, if one is shown, else by the
// certificate.
func (a *Authenticator) authenticate(ctx context.Context) (access.Caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonNoCredential, "nothing is known of the connection")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		// A token in plaintext is everybody's.
		return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonNoCredential, "credentials are accepted over TLS only")
	}
	headers := metadata.ValueFromIncomingContext(ctx, access.Header)
	switch {
	case len(headers) > 1:
		return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonTokenMalformed, "%d authorization headers; one is allowed", len(headers))
	case len(headers) == 1:
		token, ok := access.Token(headers[0])
		if !ok {
			return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonTokenMalformed, "the authorization header must be of the form \"Bearer TOKEN\"")
		}
		return a.review(ctx, token, a.Audience)
	case len(info.State.VerifiedChains) > 0:
		return access.Certified(info.State.VerifiedChains[0][0].Subject), nil
	}
	return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonNoCredential,
		"neither a service account's token for %q nor a certificate is shown", a.Audience)
}

// host is the caller's address without its port.
func host(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return "unknown"
	}
	if p.Addr.Network() == "unix" {
		return "unix socket"
	}
	if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
		return host
	}
	return p.Addr.String()
}

// retryAfter is when a caller that could not be reviewed should try again.
const retryAfter = 2 * time.Second
