// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	// ReasonUnknownMessage: the agent sent a message of a type that this
	// calculator does not know.
	ReasonUnknownMessage = "UNKNOWN_MESSAGE"
	// ReasonWrongNode: the node's name differs from the credential's.
	ReasonWrongNode = "WRONG_NODE"
)

// errorDomain is ErrorInfo.domain of everything that this service refuses.
const errorDomain = "millrace.dataplane.v1"

// refusal makes an error that carries a stable reason for programs.
func refusal(code codes.Code, reason string, format string, args ...any) error {
	st := status.New(code, fmt.Sprintf(format, args...))
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
	if err != nil {
		return st.Err()
	}
	return detailed.Err()
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
