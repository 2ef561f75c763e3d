// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/proto/errorinfo"
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

// domain is ErrorInfo.domain of everything that this service refuses.
const domain errorinfo.Domain = "millrace.dataplane.v1"

// errDraining refuses an agent because the calculator is about to go.
func errDraining() error {
	return domain.Errorf(codes.Unavailable, ReasonDraining, "this calculator is about to stop")
}
