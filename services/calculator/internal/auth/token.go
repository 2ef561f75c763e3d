// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/access"
)

// What the API server tells of a token that is bound to a pod.
const (
	extraPod  = "authentication.kubernetes.io/pod-name"
	extraNode = "authentication.kubernetes.io/node-name"
)

// tokenFreshFor is how long a token is not reviewed again: how long a pod that
// was deleted may still connect.
const tokenFreshFor = 10 * time.Minute

// review finds out whose token it is, which was issued for an audience.
func (a *Authenticator) review(ctx context.Context, token, audience string) (access.Caller, error) {
	if a.Tokens == nil {
		return access.Caller{}, access.Deny(codes.Unauthenticated, access.ReasonNoReviewer,
			"this calculator reads no API server, so nobody can review a token; show a certificate")
	}
	now := time.Now()
	c, err := screen(token, audience, now)
	if err != nil {
		return access.Caller{}, err
	}
	caller, err := a.tokens.get(ctx, sha256.Sum256([]byte(audience+"\x00"+token)), func(ctx context.Context) (verdict[access.Caller], error) {
		return a.reviewToken(ctx, token, audience, c.expires())
	})
	return caller, err
}

func (a *Authenticator) reviewToken(ctx context.Context, token, audience string, expires time.Time) (verdict[access.Caller], error) {
	review, err := a.Tokens.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		a.metrics.reviews.WithLabelValues("token", "failed").Inc()
		return verdict[access.Caller]{}, &errAway{err}
	}
	now, status := time.Now(), review.Status
	reject := func(reason, format string, args ...any) (verdict[access.Caller], error) {
		a.metrics.reviews.WithLabelValues("token", "rejected").Inc()
		return verdict[access.Caller]{rejected: access.Deny(codes.Unauthenticated, reason, format, args...),
			fresh: now.Add(rejectedFor), last: now.Add(rejectedFor)}, nil
	}
	switch {
	case !status.Authenticated:
		why := status.Error
		if why == "" {
			why = "it says nothing more"
		}
		return reject(access.ReasonTokenRejected, "the API server does not accept the token: %s", why)
	case !slices.Contains(status.Audiences, audience):
		// The API server knows nothing of audiences, or of this one.
		return reject(access.ReasonForeignAudience, "the API server takes the token for one for %q, not for %q", status.Audiences, audience)
	}
	a.metrics.reviews.WithLabelValues("token", "accepted").Inc()
	return verdict[access.Caller]{value: a.identify(status.User), fresh: earlier(now.Add(tokenFreshFor), expires), last: expires}, nil
}

// identify says what kind of caller a user is.
func (a *Authenticator) identify(user authenticationv1.UserInfo) access.Caller {
	caller := access.Caller{Kind: access.Account, Name: user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string][]string{}}
	for key, values := range user.Extra {
		caller.Extra[key] = values
	}
	if user.Username != a.AgentAccount {
		return caller
	}
	node, pod := user.Extra[extraNode], user.Extra[extraPod]
	if len(node) != 1 || len(pod) != 1 || node[0] == "" || pod[0] == "" {
		caller.Unbound = true
		return caller
	}
	caller.Kind, caller.Node, caller.Pod = access.Agent, node[0], pod[0]
	return caller
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
