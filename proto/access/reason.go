// SPDX-License-Identifier: Apache-2.0

package access

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/proto/errorinfo"
)

// Reasons why a call is refused, as ErrorInfo.reason carries them.
// UNAUTHENTICATED: the caller has shown nothing that says who it is.
const (
	// ReasonNoCredential: neither a token nor a certificate.
	ReasonNoCredential = "NO_CREDENTIAL"
	// ReasonTokenMalformed: what is shown is no token of a service account.
	ReasonTokenMalformed = "TOKEN_MALFORMED"
	// ReasonTokenExpired: the token's time is over.
	ReasonTokenExpired = "TOKEN_EXPIRED"
	// ReasonForeignAudience: the token was issued for somebody else.
	ReasonForeignAudience = "FOREIGN_AUDIENCE"
	// ReasonTokenRejected: the API server does not accept the token; its pod may
	// be gone, or it is another cluster's.
	ReasonTokenRejected = "TOKEN_REJECTED"
	// ReasonNoReviewer: a token, but there is no API server to review it.
	ReasonNoReviewer = "NO_REVIEWER"
)

// PERMISSION_DENIED: it is known who calls, who may not.
const (
	// ReasonForeignNode: an agent asks for another node than its own.
	ReasonForeignNode = "FOREIGN_NODE"
	// ReasonForeignAccount: the RPC is for agents, the account is not theirs.
	ReasonForeignAccount = "FOREIGN_ACCOUNT"
	// ReasonTokenUnbound: the account is the agents', but the token is bound to no
	// pod on a node.
	ReasonTokenUnbound = "TOKEN_UNBOUND"
	// ReasonNotAllowed: the RPC is for others.
	ReasonNotAllowed = "NOT_ALLOWED"
	// ReasonNoRule: the RPC has no row in the table.
	ReasonNoRule = "NO_RULE"
)

// UNAVAILABLE: nobody could be asked.
const (
	// ReasonReviewFailed: the API server did not answer.
	ReasonReviewFailed = "REVIEW_FAILED"
	// ReasonReviewBusy: too many credentials wait to be reviewed.
	ReasonReviewBusy = "REVIEW_BUSY"
)

// Domain is ErrorInfo.domain of everything that is refused here.
const Domain errorinfo.Domain = "millrace.access"

// Deny makes an error that carries a stable reason for programs.
func Deny(code codes.Code, reason, format string, args ...any) error {
	return Domain.Errorf(code, reason, format, args...)
}

// Defer is Deny with UNAVAILABLE, and tells when to try again.
func Defer(reason string, delay time.Duration, format string, args ...any) error {
	return Domain.RetryErrorf(codes.Unavailable, reason, delay, format, args...)
}

// ReasonOf returns the reason that an error of this package carries; empty if it
// carries none.
func ReasonOf(err error) string { return Domain.Reason(err) }
