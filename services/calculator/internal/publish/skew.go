// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// announce takes in which types the agent understands. Agents and calculators
// of two releases meet while either is upgraded, so it tells three cases apart:
//
//   - a type that the agent does not announce is not sent to it, and removed if
//     an agent of another release was given it;
//   - a type that this calculator does not publish is left as the agent has it:
//     a newer calculator gave it, and will again;
//   - a type of which the agent understands only an older schema than the oldest
//     that is published here ends the stream. Sending nothing of it would have
//     the agent remove what it forwards by.
func (st *stream) announce(types []*dataplanev1.TypeSupport) error {
	if len(types) == 0 {
		return domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field hello.types: an agent must announce at least one type")
	}
	for _, support := range types {
		oldest, published := st.service.Schemas[support.GetType()]
		switch {
		case !published:
			st.foreign.add(support.GetType())
		case support.GetSchema() < oldest:
			return domain.Errorf(codes.FailedPrecondition, ReasonSchemaTooOld,
				"field hello.types: the agent understands %s up to schema %d, this calculator, version %s, publishes none below %d; upgrade the agent",
				support.GetType(), support.GetSchema(), st.service.Version, oldest)
		default:
			st.types.add(support.GetType())
		}
	}
	return nil
}

// keepForeign takes the resources of types that are not published here out of
// what the agent listed, and remembers their digest: it is part of what the
// agent holds for as long as the stream lasts.
func (st *stream) keepForeign(held map[uint32]map[name]uint64) {
	for _, resources := range held {
		for n, version := range resources {
			if st.foreign.has(n.kind) {
				st.kept ^= digest.ResourceDigest(n.proto(), version)
				delete(resources, n)
			}
		}
	}
}

// sum is the digest of what the agent holds when it has been brought to the
// view.
func (st *stream) sum(v *view) uint64 {
	digests := v.digests(st.types)
	return digests.Sum() ^ st.kept
}
