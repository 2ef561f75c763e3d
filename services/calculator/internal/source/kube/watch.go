// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// selecting adds the kind's selectors.
func (s *store) selecting(options metav1.ListOptions) metav1.ListOptions {
	options.LabelSelector, options.FieldSelector = s.kind.label, s.kind.field
	return options
}

// listOnce lists and notes whether that worked.
func (s *store) listOnce(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	s.streaming = false
	list, err := s.kind.list(ctx, s.selecting(options))
	if err != nil && ctx.Err() == nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		s.failed("listing "+s.kind.plural, err)
	}
	return list, err
}

// watchOnce opens a watch and notes whether that worked.
func (s *store) watchOnce(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	from := options.ResourceVersion
	resumes := options.SendInitialEvents == nil && from != "" && from != "0"
	if resumes && s.interrupted() {
		return nil, apierrors.NewResourceExpired("the watch was interrupted, so that everything is listed anew")
	}
	begin := time.Now()
	watcher, err := s.kind.watch(ctx, s.selecting(options))
	// A watch that begins with a list is checked by the API server.
	if err == nil && resumes {
		// Only now: what is asked before could be answered before the API
		// server is restarted, and the watch opened after.
		if err = s.confirmText(ctx, from); err != nil {
			watcher.Stop()
		}
	}
	s.due, s.streaming = time.Time{}, !resumes
	if err == nil && options.TimeoutSeconds != nil {
		s.due = begin.Add(time.Duration(*options.TimeoutSeconds)*time.Second - dueMargin)
	}
	if err != nil && resumes {
		s.lost = true
	}
	switch {
	case err == nil:
		s.succeeded()
	case ctx.Err() == nil && !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) && !apierrors.IsInvalid(err):
		// A server that does not know streamed lists calls them invalid; the
		// reflector then lists.
		s.failed("watching "+s.kind.plural, err)
	}
	if err != nil {
		return nil, err
	}
	return watcher, nil
}

// dueMargin is how much before its time the end of a watch is in order: two
// clocks are at work, and the request takes time.
const dueMargin = 2 * time.Second

// interrupted tells that the last watch did not end when it was to, or could
// not be followed by another. The API server may then be another one, and its
// state one that was set back and has gone on since, beyond what was read from
// it before: to go on from there would miss what happened in between, and no
// version would tell. Only a list is sure, and after a restart of the API
// server it is needed nearly always anyway.
func (s *store) interrupted() bool {
	if time.Now().Before(s.due) {
		s.lost = true
	}
	return s.lost
}

// failed makes what fails a problem. What was read before stays in force.
func (s *store) failed(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reason, explanation := s.source.explain(what, err)
	if s.trouble == reason {
		return // listing and watching fail in turns for one reason
	}
	s.trouble = reason
	message := explanation + "; what was read before stays in force and this is tried again"
	s.sink.SetProblems(s.kind.plural, []problem.Problem{{
		Object: model.Key{Kind: source.KindWatch, Name: s.kind.plural}, Message: message}})
}

// troubled tells that something fails at present.
func (s *store) troubled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble != ""
}

func (s *store) succeeded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble != "" {
		s.trouble = ""
		s.sink.SetProblems(s.kind.plural, nil)
	}
}

// unreadable reports what the API server should never send.
func (s *store) unreadable(err error) error {
	s.failed("reading "+s.kind.plural, err)
	return errors.Join(errors.New("unreadable object"), err)
}

// latest returns the version that the API server's store is at, by a read that
// no cache answers from what it happens to have.
func (s *store) latest(ctx context.Context, k kind) (uint64, error) {
	list, err := k.one(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + k.asked})
	if err != nil {
		return 0, fmt.Errorf("asking for the version of %s: %w", k.plural, err)
	}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return 0, fmt.Errorf("asking for the version of %s: %w", k.plural, err)
	}
	return parseVersion(accessor.GetResourceVersion())
}

// confirm demands that the API server is not at less than where a watch
// begins: it would take it for a version yet to come, and leave out silently
// whatever happens until then.
func (s *store) confirm(ctx context.Context, version uint64) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	latest, err := s.latest(ctx, s.kind)
	if err != nil {
		return err
	}
	if latest < version {
		return s.source.setBack(s.kind.plural, version, latest)
	}
	return nil
}

func (s *store) confirmText(ctx context.Context, from string) error {
	version, err := parseVersion(from)
	if err != nil {
		return err
	}
	return s.confirm(ctx, version)
}

// confirmTimeout bounds confirm.
const confirmTimeout = 10 * time.Second
