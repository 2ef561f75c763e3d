// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/proto/digest"
	"github.com/millrace-project/millrace/proto/epoch"
	"github.com/millrace-project/millrace/proto/errorinfo"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// admit waits until the calculator can serve the agent and returns what its
// node is to be given, or why it cannot be served.
func (st *stream) admit(hello *dataplanev1.Hello) (view, error) {
	node, err := st.authorize(hello.GetNodeName())
	if err != nil {
		return view{}, err
	}
	st.node = node
	if err := st.announce(hello.GetTypes()); err != nil {
		return view{}, err
	}
	if count := len(hello.GetBucketDigests()); count&(count-1) != 0 {
		return view{}, domain.Errorf(codes.InvalidArgument, ReasonMalformed,
			"field hello.bucket_digests: %d buckets, the count must be a power of two", count)
	}
	patience := time.NewTimer(st.service.Patience)
	defer patience.Stop()
	for {
		now, refused := st.ready(hello)
		if refused == nil {
			return now.view, nil
		}
		advice := st.overtaken(hello, refused)
		if now.final {
			return view{}, advised(refused, advice)
		}
		select {
		case <-now.advanced:
		case <-patience.C:
			return view{}, advised(refused, st.overtaken(hello, refused))
		case <-st.service.drained:
			return view{}, errDraining()
		case <-st.context().Done():
			return view{}, st.context().Err()
		}
	}
}

// awaitTurn waits until the agent may be brought up. One that holds what it
// should needs no turn: it costs a comparison.
func (st *stream) awaitTurn(hello *dataplanev1.Hello, now *view) (leave func(), err error) {
	if held := hello.GetBucketDigests(); len(held) > 0 {
		digests := now.digests(st.types)
		if differing, _ := digests.Differing(held); len(differing) == 0 {
			return func() {}, nil
		}
	}
	if leave, err = st.service.admission.enter(st.context(), st.service.drained); err != nil {
		return nil, err
	}
	// Time has passed.
	latest, err := st.admit(hello)
	if err != nil {
		leave()
		return nil, err
	}
	*now = latest
	if len(hello.GetBucketDigests()) == 0 && len(st.floor(hello)) == 0 {
		if v, ok := st.service.joins.choose(st.node, st.service.publisher.current.Load()); ok {
			*now = v
		}
	}
	return leave, nil
}

// overtaken has the source find out how far it really is if that is why the
// agent is refused, and returns what the source says about it.
func (st *stream) overtaken(hello *dataplanev1.Hello, refused error) string {
	if st.service.Ahead == nil || errorinfo.Reason(refused) != ReasonBehindPosition {
		return ""
	}
	return st.service.Ahead(st.node, hello.GetEpoch(), hello.GetPosition().GetResourceVersions())
}

// advised adds to a refusal what a person may do about it.
func advised(refused error, advice string) error {
	if advice == "" {
		return refused
	}
	return domain.Errorf(status.Code(refused), errorinfo.Reason(refused), "%s; %s", status.Convert(refused).Message(), advice)
}

// readiness is the outcome of one look at whether an agent can be served.
type readiness struct {
	view view
	// final tells that waiting will not help.
	final    bool
	advanced <-chan struct{}
}

// ready looks whether the agent can be served now.
func (st *stream) ready(hello *dataplanev1.Hello) (readiness, error) {
	snapshot, reached, advanced := st.service.publisher.status()
	if snapshot == nil {
		return readiness{advanced: advanced}, domain.Errorf(codes.Unavailable, ReasonNotSynced, "this calculator has not read its source in whole yet")
	}
	own := st.service.Epoch()
	switch epoch.Compare(hello.GetEpoch(), own) {
	case epoch.Foreign:
		return readiness{final: true}, domain.Errorf(codes.FailedPrecondition, ReasonWrongEpoch,
			"field hello.epoch: the agent holds state of %q, this calculator computes %q", hello.GetEpoch(), own)
	case epoch.Ahead:
		return readiness{final: true}, domain.Errorf(codes.Unavailable, ReasonBehindPosition,
			"field hello.epoch: the agent has heard of %q, this calculator computes %q", hello.GetEpoch(), own)
	}
	now, ok := snapshot.view(st.node)
	if !ok {
		return readiness{advanced: advanced}, unknownNode(st.node)
	}
	if kinds := reached.behind(st.floor(hello)); len(kinds) > 0 {
		return readiness{advanced: advanced}, domain.Errorf(codes.Unavailable, ReasonBehindPosition,
			"field hello.position: the agent knows more than this calculator: %s", strings.Join(kinds, ", "))
	}
	return readiness{view: now}, nil
}

// floor is the position that the agent must never be told less than: the one it
// has, if it is of this epoch. An older epoch's means nothing any more, that
// is what epochs are for.
func (st *stream) floor(hello *dataplanev1.Hello) Position {
	if epoch.Compare(hello.GetEpoch(), st.service.Epoch()) == epoch.Behind {
		return nil
	}
	return hello.GetPosition().GetResourceVersions()
}

func unknownNode(node string) error {
	return domain.Errorf(codes.NotFound, ReasonUnknownNode, "the cluster has no node %q", node)
}

// authorize returns the name of the node: of an agent the one that its credential
// is of. An operator is believed.
func (st *stream) authorize(claimed string) (string, error) {
	node, err := access.NodeOf(st.context(), claimed)
	if err != nil {
		return "", err
	}
	if node == "" {
		return "", domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field hello.node_name: must not be empty")
	}
	return node, nil
}

func (st *stream) welcome() error {
	f, err := encodeResponse(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_Welcome{Welcome: &dataplanev1.Welcome{
		CalculatorId:      st.service.CalculatorID,
		CalculatorVersion: st.service.Version,
		Epoch:             st.service.Epoch(),
		Buckets:           digest.Count,
	}}})
	if err != nil {
		return err
	}
	return st.sendFrame(f)
}

// bringUp sends the first batch: what leads from what the agent holds to now.
func (st *stream) bringUp(node *nodeState, now *view, hello *dataplanev1.Hello, floor Position) error {
	kind, batch := batchJoin, content{}
	if len(hello.GetBucketDigests()) == 0 {
		var err error
		if batch.shared, err = now.fullFrames(st.types); err != nil {
			return err
		}
	} else {
		kind = batchResume
		digests := now.digests(st.types)
		differing, _ := digests.Differing(hello.GetBucketDigests()) // the count was checked by admit
		held, err := st.askHeld(differing)
		if err != nil {
			return err
		}
		st.keepForeign(held)
		batch.own = now.resumeChanges(st.types, held)
	}
	commit, err := encodeCommit(now.revision, now.position.Merge(floor), time.Time{}, st.sum(now))
	if err != nil {
		return fmt.Errorf("encoding the first commit: %w", err)
	}
	return st.sendBatch(node, kind, batch, commit, now.revision, time.Time{})
}

// askHeld asks for what the agent holds in the buckets and waits for all
// answers.
func (st *stream) askHeld(buckets []uint32) (map[uint32]map[name]uint64, error) {
	if len(buckets) == 0 {
		return nil, nil
	}
	f, err := encodeResponse(&dataplanev1.SyncResponse{Message: &dataplanev1.SyncResponse_HeldRequest{
		HeldRequest: &dataplanev1.HeldRequest{Buckets: buckets}}})
	if err != nil {
		return nil, err
	}
	if err := st.sendFrame(f); err != nil {
		return nil, err
	}
	missing := make(map[uint32]struct{}, len(buckets))
	for _, bucket := range buckets {
		missing[bucket] = struct{}{}
	}
	held := make(map[uint32]map[name]uint64, len(buckets))
	patience := time.NewTimer(st.service.Answer)
	defer patience.Stop()
	for len(missing) > 0 {
		select {
		case answer := <-st.held:
			if _, ok := missing[answer.GetBucket()]; !ok {
				return nil, domain.Errorf(codes.InvalidArgument, ReasonMalformed, "field held.bucket: bucket %d was not asked for or has been answered", answer.GetBucket())
			}
			delete(missing, answer.GetBucket())
			resources := make(map[name]uint64, len(answer.GetResources()))
			for _, resource := range answer.GetResources() {
				n := nameOf(resource.GetName())
				if bucketIndex(n) != int(answer.GetBucket()) {
					return nil, domain.Errorf(codes.InvalidArgument, ReasonMalformed,
						"field held.resources: %s %q does not belong to bucket %d", n.kind, n.key, answer.GetBucket())
				}
				resources[n] = resource.GetVersion()
			}
			held[answer.GetBucket()] = resources
		case <-patience.C:
			return nil, domain.Errorf(codes.InvalidArgument, ReasonMalformed, "%d held messages did not come in %v", len(missing), st.service.Answer)
		case <-st.context().Done():
			return nil, st.context().Err()
		}
	}
	return held, nil
}
