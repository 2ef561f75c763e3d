// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/access"
)

const (
	// allowedFor is how long an account that may read is not asked about again,
	// allowedAway how long while the API server is away.
	allowedFor  = time.Minute
	allowedAway = 10 * time.Minute
)

// permit asks the cluster's authorizers whether an account may call an RPC. The
// RPC's full name is the non-resource URL, so that roles grant single RPCs, or
// services with an asterisk.
func (a *Authenticator) permit(ctx context.Context, caller access.Caller, verb, method string) error {
	if a.Rights == nil {
		// The operator's own CA, and nobody else to ask.
		return nil
	}
	spec := authorizationv1.SubjectAccessReviewSpec{
		User: caller.Name, UID: caller.UID, Groups: caller.Groups, Extra: map[string]authorizationv1.ExtraValue{},
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: method, Verb: verb},
	}
	for key, values := range caller.Extra {
		spec.Extra[key] = values
	}
	// Maps are encoded in the order of their keys.
	question, err := json.Marshal(spec)
	if err != nil {
		return access.Deny(codes.Internal, access.ReasonReviewFailed, "encoding what %s is to be allowed: %v", caller, err)
	}
	_, err = a.rights.get(ctx, sha256.Sum256(question), func(ctx context.Context) (verdict[struct{}], error) {
		return a.reviewAccess(ctx, spec)
	})
	return err
}

func (a *Authenticator) reviewAccess(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (verdict[struct{}], error) {
	review, err := a.Rights.Create(ctx,
		&authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		a.metrics.reviews.WithLabelValues("access", "failed").Inc()
		return verdict[struct{}]{}, &errAway{err}
	}
	now := time.Now()
	if !review.Status.Allowed || review.Status.Denied {
		a.metrics.reviews.WithLabelValues("access", "rejected").Inc()
		why := ""
		if review.Status.Reason != "" {
			why = fmt.Sprintf(" (%s)", review.Status.Reason)
		}
		return verdict[struct{}]{fresh: now.Add(rejectedFor), last: now.Add(rejectedFor),
			rejected: access.Deny(codes.PermissionDenied, access.ReasonNotAllowed,
				"%s may not %s the non-resource URL %s%s", spec.User, spec.NonResourceAttributes.Verb, spec.NonResourceAttributes.Path, why)}, nil
	}
	a.metrics.reviews.WithLabelValues("access", "accepted").Inc()
	return verdict[struct{}]{fresh: now.Add(allowedFor), last: now.Add(allowedAway)}, nil
}
