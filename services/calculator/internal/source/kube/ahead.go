// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/epoch"
)

// A position that comes from a list is higher than that of any object: the
// list's version is the whole store's. Another replica, whose watch has been
// told of every object but of no bookmark since, knows as much and cannot
// prove it. So when an agent comes that knows more, the API server is asked
// what happened after this replica's own position: a second watch from there
// tells all of it in order and ends with a bookmark. If it tells nothing,
// nothing did happen, deletions included, and the bookmark is this replica's
// position too; if it tells something, the bookmark counts as soon as the
// replica's own watch has brought the last of it.

const (
	// askTimeout bounds one such question. An agent waits five seconds before
	// it tries another calculator.
	askTimeout = 4 * time.Second
	// askPause is the least time between two questions about one kind, however
	// many agents come.
	askPause = time.Second
	// probeWatch is for how long that second watch is asked for, in seconds:
	// API servers send a bookmark two seconds before a watch's end.
	probeWatch = 3
	// overdue is how long what the second watch told may take to arrive by the
	// first one before that is given up for dead, and cutPause the least time
	// between two times that this happens: a connection that is only slow would
	// else get nothing done.
	overdue  = 2 * time.Second
	cutPause = 30 * time.Second
	// aheadLasts is for how long an agent that was refused is a problem if it
	// does not come again; agents come at least every half minute.
	aheadLasts = 2 * time.Minute
	// nobody is the name of an object that need not exist: reading one object
	// by its name tells the store's version at the least cost.
	nobody = "millrace-asks-how-far-it-is"
)

// Ahead is told of an agent that knows more than this process has handed
// over. It finds out whether the process is behind or the API server itself,
// and returns what there is to say about the latter; it does not wait.
func (s *Source) Ahead(node, heard string, position map[string]uint64) string {
	s.mu.Lock()
	stores, own := s.stores, s.counter
	s.mu.Unlock()
	if _, theirs, _ := epoch.Split(heard); theirs > own {
		s.overtaken(theirs+1, fmt.Sprintf("the agent of node %q has heard of epoch %d, the cluster is at %d: its state was set back", node, theirs, own))
	} else {
		for _, st := range stores {
			if want := position[st.kind.plural]; want > st.reached() {
				st.ask(question{node: node, want: want})
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.aheadSeen) > aheadLasts {
		return ""
	}
	return s.ahead
}

// overtaken makes it a problem that an agent knows of a later state than the
// API server does. Nobody but an operator can tell whether that is meant.
func (s *Source) overtaken(counter uint64, what string) {
	message := what + ", as when etcd is restored from an older backup. Agents that know more keep what they have until this is confirmed by a higher epoch: " +
		raise(counter)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aheadSeen = time.Now()
	if s.ahead != "" && counter <= s.aheadCounter {
		return // one agent and kind stand for all
	}
	s.log.Error("agents know more than the API server", zap.String("server", s.host), zap.String("message", message))
	s.ahead, s.aheadCounter = message, counter
	s.sink.SetProblems(aheadPart, []problem.Problem{{Object: epochHolder, Field: epochField, Message: message}})
}

// aheadPart is the part of the source that the problem of overtaken belongs
// to.
const aheadPart = "agents ahead"

// forgetAhead ends the problem of overtaken when no agent has come with it for
// a while.
func (s *Source) forgetAhead(ctx context.Context) {
	tick := time.NewTicker(aheadLasts / 8)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if s.ahead != "" && time.Since(s.aheadSeen) > aheadLasts {
			s.ahead = ""
			s.sink.SetProblems(aheadPart, nil)
		}
		s.mu.Unlock()
	}
}

// question is what an agent makes a store ask the API server.
type question struct {
	node string
	want uint64
}

// proof tells that what is handed over is complete up to a version once
// everything up to another, lower one is handed over.
type proof struct{ needs, reached uint64 }

// ask has a question answered, unless one is waiting already: its answer will
// do for this one too.
func (s *store) ask(q question) {
	select {
	case s.questions <- q:
	default:
	}
}

// answer answers questions until the context ends.
func (s *store) answer(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case q := <-s.questions:
			if err := s.catchUp(ctx, q); err != nil && ctx.Err() == nil {
				s.log.Debug("could not ask the API server how far it is", zap.String("server", s.source.host), zap.Error(err))
			}
		}
		pause.Reset(askPause)
	}
}

// catchUp learns how far the API server is and what happened after the
// store's own position.
func (s *store) catchUp(ctx context.Context, q question) error {
	from := s.reached()
	if from == 0 || from >= q.want || s.troubled() {
		// Not even listed, or come right meanwhile; or without a watch, so that
		// a list is due, before which it is unknown of what this is a position.
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	defer s.source.probes.use()()
	// Besides its own use, this makes the API server's cache go up to here,
	// without which the bookmark would tell an older version.
	latest, err := s.latest(ctx, s.probe)
	switch {
	case err != nil:
		return err
	case latest < from:
		return s.source.setBack(s.kind.plural, from, latest)
	case latest < q.want:
		s.source.overtaken(s.source.epochCounter()+1, fmt.Sprintf(
			"the agent of node %q has been told of %s up to resource version %d, the API server at %s is at %d: the cluster's state was set back",
			q.node, s.kind.plural, q.want, s.source.host, latest))
		return nil
	}
	seconds := int64(probeWatch)
	watcher, err := s.probe.watch(ctx, s.selecting(metav1.ListOptions{
		ResourceVersion: versionText(from), AllowWatchBookmarks: true, TimeoutSeconds: &seconds}))
	if err != nil {
		return fmt.Errorf("watching %s: %w", s.kind.plural, err)
	}
	defer watcher.Stop()
	last := from
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for a bookmark of %s: %w", s.kind.plural, ctx.Err())
		case event, open := <-watcher.ResultChan():
			if !open {
				return fmt.Errorf("the watch of %s ended without a bookmark", s.kind.plural)
			}
			if event.Type == watch.Error {
				err := apierrors.FromObject(event.Object)
				if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
					return nil // the store's own watch finds the same, and lists
				}
				return fmt.Errorf("watching %s: %w", s.kind.plural, err)
			}
			version, err := versionOf(event.Object)
			if err != nil {
				return fmt.Errorf("watching %s: %w", s.kind.plural, err)
			}
			if event.Type != watch.Bookmark {
				last = version
				continue
			}
			s.prove(proof{needs: last, reached: version})
			return s.expect(ctx, last)
		}
	}
}

// expect waits for the store's own watch to bring what is known to have
// happened, and cuts its connection if that takes too long.
func (s *store) expect(ctx context.Context, version uint64) error {
	late := time.NewTimer(overdue)
	defer late.Stop()
	for {
		reached, changed := s.progress()
		if reached >= version {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-late.C:
			if s.source.cutWatches() {
				s.log.Warn("the watch does not bring what has happened; connecting anew", zap.String("server", s.source.host),
					zap.Uint64("reached", reached), zap.Uint64("happened", version))
			}
			return nil
		}
	}
}

// cutWatches cuts the connections of the watches, if that was not done a
// moment ago. All watches share one, and go on where they were.
func (s *Source) cutWatches() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.lastCut) < cutPause {
		return false
	}
	s.lastCut = time.Now()
	s.client.cut()
	return true
}

func (s *Source) epochCounter() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counter
}

func versionOf(object any) (uint64, error) {
	accessor, err := meta.Accessor(object)
	if err != nil {
		return 0, errors.Join(errors.New("unreadable object"), err)
	}
	return parseVersion(accessor.GetResourceVersion())
}
