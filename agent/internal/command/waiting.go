// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/api"
	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/dataplane/absent"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/metrics"
	"github.com/millrace-project/millrace/agent/internal/nodecheck"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	mbpf "github.com/millrace-project/millrace/bpf"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// lookAgain is how often it is looked whether a node that could not be programmed
// was mended.
const lookAgain = 2 * time.Second

// memory is the log of an agent that is to keep nothing.
type memory struct{ store *held.Store }

// Append implements applier.Log.
func (m memory) Append(b *held.Batch) error { m.store.Apply(b); return nil }

// Fault implements applier.Log.
func (memory) Fault() string { return "" }

// awaitNode returns when the node has what is needed. Until then the agent is
// there for whoever asks why it is not ready: its own status, its probes, and the
// calculator, which it tells. An agent that ended instead would end again and
// again, and only its last lines of log would say why.
func awaitNode(ctx context.Context, s *settings, log *zap.Logger, version string) error {
	problems := func() []string { return nodecheck.Problems(s.bpfFS, s.checkKernel) }
	why := problems()
	if len(why) == 0 {
		return nil
	}
	tellProblems(log, why)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w, err := s.startWaiting(ctx, cancel, log, version, why)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			w.stop(cancel)
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return errStopped
		case <-tick.C:
		}
		now := problems()
		if len(now) == 0 {
			log.Info("the node has what is needed now")
			w.stop(cancel)
			return nil
		}
		if !slices.Equal(now, why) {
			why = now
			tellProblems(log, why)
			w.plane.Set(why)
			w.applier.Refresh(ctx) //nolint:errcheck // fails only when ctx has ended
		}
	}
}

// errStopped tells that the agent was stopped before the node could be
// programmed.
var errStopped = errors.New("stopped while waiting for the node")

func tellProblems(log *zap.Logger, why []string) {
	log.Error("this node cannot be programmed; waiting until it can", zap.String("kernel", mbpf.KernelRelease()), zap.Strings("problems", why))
}

// waiting is an agent of a node that cannot be programmed.
type waiting struct {
	plane   *absent.Plane
	applier *applier.Applier
	// ended return when everything has.
	ended []func()
}

// startWaiting serves and reports that the node cannot be programmed.
func (s *settings) startWaiting(ctx context.Context, cancel context.CancelCauseFunc, log *zap.Logger, version string, why []string) (*waiting, error) {
	store := held.New()
	w := &waiting{plane: absent.New(store, s.kernelState(), why)}
	a := &agent{settings: s, log: log, metrics: metrics.New(version), store: store}
	w.applier = applier.New(store, memory{store}, w.plane, a.metrics, log)
	a.makeDiscovery()
	// One small resource is the least that a stream is for, and calculators may
	// move meanwhile; what a node is to have is of no use here.
	client := syncclient.New(syncclient.Options{Node: s.node, Version: version, Discovery: a.discovery, Token: a.showToken(),
		Types: []dataplanev1.ResourceType{dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG,
			dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS}}, store, w.applier, a.metrics, log)
	guard, err := a.guard(client)
	if err != nil {
		return nil, err
	}
	serving, err := api.Serve(&api.Server{
		Node: s.node, Version: version, Started: time.Now(), Store: store, Dataplane: w.plane,
		Applier: w.applier, Stream: client, Problems: a.identityProblems, Known: a.tellKnown,
		Endpoints: &absent.EndpointService{Plane: w.plane},
	}, s.listenUnix, s.listen, guard, func(err error) { cancel(err) })
	if err != nil {
		return nil, err
	}
	w.ended = append(w.ended, serving.Stop)
	stopMetrics, err := a.listenMetrics(cancel, func() string {
		return fmt.Sprintf("this node cannot be programmed: %s", strings.Join(w.plane.Problems(), "; "))
	})
	if err != nil {
		w.stop(cancel)
		return nil, err
	}
	w.ended = append(w.ended, stopMetrics)
	w.applier.Restore(ctx)
	var work sync.WaitGroup
	for _, run := range []func(context.Context){w.applier.Run, client.Run, a.discovery.Watch, a.keepCertificate} {
		work.Go(func() { run(ctx) })
	}
	w.ended = append(w.ended, work.Wait)
	return w, nil
}

// stop ends everything and returns when it has ended.
func (w *waiting) stop(cancel context.CancelCauseFunc) {
	cancel(nil)
	for _, ended := range w.ended {
		ended()
	}
}

// kernelState is what there is to tell of the kernel before it is used.
func (s *settings) kernelState() *agentv1.DataplaneState {
	var options mbpf.Options
	s.leaveUnused(&options) //nolint:errcheck // the flags were checked
	return &agentv1.DataplaneState{Kernel: mbpf.KernelRelease(), Features: bpf.Features(options.Features())}
}
