// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"fmt"
	"strconv"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/epoch"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// EpochAnnotation, on the namespace kube-system, is the counter that an
// operator raises after the cluster's state was set back (etcd restored from a
// backup), so that agents accept resource versions lower than they have seen.
const EpochAnnotation = "millrace.io/epoch"

// epochField is where the counter stands, for problems.
const epochField = "metadata.annotations[" + EpochAnnotation + "]"

// epochPart is the part of the source that problems with the counter belong
// to.
const epochPart = "epoch"

// epochHolder is the object that carries the counter.
var epochHolder = model.Key{Kind: model.KindNamespace, Name: metav1.NamespaceSystem}

// raise is the command that raises the counter.
func raise(counter uint64) string {
	return fmt.Sprintf("kubectl annotate namespace %s --overwrite %s=%d", metav1.NamespaceSystem, EpochAnnotation, counter)
}

// noteEpoch learns the identity of the cluster from its kube-system namespace.
// A process computes for one epoch: when the epoch rises, everything that was
// read may be set back, so the process ends and is started anew. A counter that
// is no number, or lower than before, is a problem and counts for nothing: an
// agent would never accept it.
func (s *Source) noteEpoch(namespace *corev1.Namespace, sink source.Sink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	identity := string(namespace.UID)
	var counter uint64
	var wrong string
	if text := namespace.Annotations[EpochAnnotation]; text != "" {
		var err error
		if counter, err = strconv.ParseUint(text, 10, 64); err != nil {
			wrong = fmt.Sprintf("%q is no number, so that it is left out of account; to raise it: %s", text, raise(s.counter+1))
			counter = s.counter
		}
	}
	if s.epoch != "" && identity == s.identity && counter < s.counter {
		wrong = fmt.Sprintf("%d is lower than %d, which it was, and no agent would accept that; %d stays in force until this is raised: %s",
			counter, s.counter, s.counter, raise(s.counter+1))
		counter = s.counter
	}
	if wrong != "" {
		sink.SetProblems(epochPart, []problem.Problem{{Object: epochHolder, Field: epochField, Message: wrong}})
	} else {
		sink.SetProblems(epochPart, nil)
	}
	current := epoch.Format(identity, counter)
	if s.epoch == "" {
		s.epoch, s.identity, s.counter = current, identity, counter
		s.log.Info("cluster identified", zap.String("epoch", current), zap.String("server", s.host))
		return
	}
	if s.epoch != current {
		s.failLocked(fmt.Errorf("the epoch of the cluster at %s changed from %q to %q: everything must be read anew", s.host, s.epoch, current))
	}
}

// failLocked ends the source; the caller holds mu.
func (s *Source) failLocked(err error) {
	if s.failure == nil {
		s.failure = err
		close(s.failed)
	}
}

// hasFailed tells that the source is about to end, so that nothing more must
// be handed over.
func (s *Source) hasFailed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure != nil
}

// setBack ends the source, because the API server is at less than what was
// read from it before: positions have lost their meaning, and a watch from
// where this process stands would silently leave out what happens until the
// versions have caught up. A new process reads everything anew; agents refuse
// it until the operator has confirmed.
func (s *Source) setBack(kind string, had, now uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := fmt.Errorf("the API server at %s is at resource version %d of %s, less than %d, which was read from it before: "+
		"the cluster's state was set back, as when etcd is restored from an older backup; everything must be read anew, "+
		"and agents keep what they have until this is confirmed: %s", s.host, now, kind, had, raise(s.counter+1))
	s.failLocked(err)
	return err
}
