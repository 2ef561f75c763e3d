// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Reasons why a stream is refused or ended, as ErrorInfo.reason carries them.
const (
	// ReasonNotSynced: the source has not been read in whole yet.
	ReasonNotSynced = "NOT_SYNCED"
	// ReasonBehindPosition: the agent knows more than this calculator.
	ReasonBehindPosition = "BEHIND_POSITION"
	// ReasonWrongEpoch: the agent belongs to another cluster.
	ReasonWrongEpoch = "WRONG_EPOCH"
	// ReasonUnknownNode: the cluster has no node of that name (any more).
	ReasonUnknownNode = "UNKNOWN_NODE"
	// ReasonReplaced: the node opened a newer stream.
	ReasonReplaced = "REPLACED"
	// ReasonDraining: the calculator is about to go.
	ReasonDraining = "DRAINING"
	// ReasonMalformed: the agent sent what the protocol does not allow.
	ReasonMalformed = "MALFORMED"
	// ReasonSchemaTooOld: the agent is too old for what this calculator
	// publishes of a type.
	ReasonSchemaTooOld = "SCHEMA_TOO_OLD"
	// ReasonUnknownMessage: the agent sent a message of a type that this
	// calculator does not know.
	ReasonUnknownMessage = "UNKNOWN_MESSAGE"
	// ReasonBusy: more agents join than are brought up at a time.
	ReasonBusy = "BUSY"
	// ReasonStalled: the agent did not read what was sent.
	ReasonStalled = "STALLED"
	// ReasonConnectionAge: the agent was asked to connect anew and did not.
	ReasonConnectionAge = "CONNECTION_AGE"
	// ReasonDuplicateNode: another agent with the node's name is connected.
	ReasonDuplicateNode = "DUPLICATE_NODE"
)

// errorDomain is ErrorInfo.domain of everything that this service refuses.
const errorDomain = "millrace.dataplane.v1"

// refusal makes an error that carries a stable reason for programs.
func refusal(code codes.Code, reason string, format string, args ...any) error {
	return detailed(code, fmt.Sprintf(format, args...), &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
}

// refusalWithDelay is refusal that also tells when to try again.
func refusalWithDelay(code codes.Code, reason string, delay time.Duration, format string, args ...any) error {
	return detailed(code, fmt.Sprintf(format, args...), &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
}

func detailed(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	plain := status.New(code, message)
	st, err := plain.WithDetails(details...)
	if err != nil {
		return plain.Err()
	}
	return st.Err()
}

// errDraining refuses an agent because the calculator is about to go.
func errDraining() error {
	return refusal(codes.Unavailable, ReasonDraining, "this calculator is about to stop")
}

// ReasonOf returns the reason that an error of this service carries; empty if
// it carries none.
func ReasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
