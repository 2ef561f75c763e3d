// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
	"github.com/millrace-project/millrace/services/calculator/internal/source/convert"
)

// store is what a reflector writes to. It keeps only which objects there are;
// the reflector calls it from one goroutine, in the order of the watch, so a
// position it tells includes everything before.
type store struct {
	source *Source
	sink   source.Sink
	kind   kind
	probe  kind // the same by other connections
	log    *zap.Logger
	// objects has every object that exists with its last trigger time, in
	// nanoseconds since 1970.
	objects map[model.Key]int64
	// apiServers is of EndpointSlices; nil of all others.
	apiServers *apiServers

	// due is when the API server is to end the watch that was opened last, and
	// lost tells that it ended before. streaming tells that the list to come is
	// the beginning of that watch. Like objects they are the reflector's.
	due             time.Time
	lost, streaming bool
	// questions has the one that waits to be answered.
	questions chan question

	mu      sync.Mutex
	trouble string // the reason for what fails at present, empty if nothing does
	// version is how far everything is handed over, and changed is closed when
	// it grows.
	version uint64
	changed chan struct{}
	proof   proof // that waits for version to grow
}

func newStore(s *Source, sink source.Sink, k, probe kind) *store {
	st := &store{source: s, sink: sink, kind: k, probe: probe, objects: map[model.Key]int64{}, log: s.log.With(zap.String("kind", k.plural)),
		questions: make(chan question, 1), changed: make(chan struct{})}
	if k.kind == model.KindEndpointSlice {
		st.apiServers = newAPIServers()
	}
	return st
}

// reached returns how far everything is handed over.
func (s *store) reached() uint64 {
	version, _ := s.progress()
	return version
}

// progress returns how far everything is handed over, and a channel that is
// closed when that grows.
func (s *store) progress() (uint64, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version, s.changed
}

// admit demands that an event is not older than what was handed over before.
// The API server promises that order, unless the cluster's state was set back.
func (s *store) admit(version uint64) error {
	if s.source.hasFailed() {
		return errEnding
	}
	if had := s.reached(); version < had {
		return s.source.setBack(s.kind.plural, had, version)
	}
	return nil
}

// admitList demands the same of a list. One that is older may also come from
// an API server whose cache is late; then listing again will do.
func (s *store) admitList(version uint64) error {
	if s.source.hasFailed() {
		return errEnding
	}
	had := s.reached()
	if version >= had {
		return nil
	}
	if err := s.confirm(context.Background(), had); err != nil {
		return err
	}
	return fmt.Errorf("the list of %s is of resource version %d, less than %d, which was read before: it is made again", s.kind.plural, version, had)
}

// errEnding is the answer of a store whose source has failed.
var errEnding = errors.New("the source is about to end")

// advance notes that everything up to the version is handed over.
func (s *store) advance(version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version <= s.version {
		return
	}
	s.growLocked(version)
	s.proveLocked(s.proof)
}

func (s *store) growLocked(version uint64) {
	s.version = version
	close(s.changed)
	s.changed = make(chan struct{})
}

// prove notes that what is handed over may be complete up to a higher version
// than was told.
func (s *store) prove(p proof) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proveLocked(p)
}

func (s *store) proveLocked(p proof) {
	s.proof = p
	if s.version < p.needs || p.reached <= s.version {
		return
	}
	s.growLocked(p.reached)
	s.sink.Reached(s.position(p.reached))
}

// trimmed is an object in the form in which it is handed over.
type trimmed struct {
	object  model.Object
	version uint64
	trigger time.Time
}

// Transformer implements cache.TransformingStore: the list that a reflector
// makes of a stream holds trimmed objects.
func (s *store) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return s.trim(object) }
}

func (s *store) trim(object any) (*trimmed, error) {
	if t, ok := object.(*trimmed); ok {
		return t, nil
	}
	accessor, ok := object.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("%T is no Kubernetes object", object)
	}
	if namespace, ok := object.(*corev1.Namespace); ok && namespace.Name == metav1.NamespaceSystem {
		s.source.noteEpoch(namespace, s.sink)
	}
	converted, err := convert.Object(accessor)
	if err != nil {
		return nil, err
	}
	version, err := parseVersion(accessor.GetResourceVersion())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", converted.Key(), err)
	}
	return &trimmed{object: converted, version: version, trigger: convert.LastChange(accessor)}, nil
}

func parseVersion(text string) (uint64, error) {
	version, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("resourceVersion %q is no number, so positions cannot be compared: %w", text, err)
	}
	return version, nil
}

// Add implements cache.ReflectorStore.
func (s *store) Add(object any) error { return s.set(object) }

// Update implements cache.ReflectorStore.
func (s *store) Update(object any) error { return s.set(object) }

func (s *store) set(object any) error {
	t, err := s.trim(object)
	if err != nil {
		return s.unreadable(err)
	}
	if err := s.admit(t.version); err != nil {
		return err
	}
	change := source.Change{Key: t.object.Key(), Object: t.object}
	// The annotation stays on an object that changes for another reason: only
	// one that is new, and not from long ago, tells of this change.
	if nanos := unixNano(t.trigger); nanos != 0 && nanos != s.objects[change.Key] && time.Since(t.trigger) < staleAfter {
		change.Trigger = t.trigger
	}
	s.objects[change.Key] = unixNano(t.trigger)
	s.sink.Apply(s.apiServers.change([]source.Change{change}), s.position(t.version))
	s.advance(t.version)
	if s.kind.kind == model.KindNamespace {
		s.source.listed(s.kind.plural, s.sink) // perhaps the one that identifies the cluster
	}
	return nil
}

// Delete implements cache.ReflectorStore. The object carries the resource
// version of its deletion.
func (s *store) Delete(object any) error {
	t, err := s.trim(object)
	if err != nil {
		return s.unreadable(err)
	}
	if err := s.admit(t.version); err != nil {
		return err
	}
	key := t.object.Key()
	delete(s.objects, key)
	s.sink.Apply(s.apiServers.change([]source.Change{{Key: key}}), s.position(t.version))
	s.advance(t.version)
	return nil
}

// Replace implements cache.ReflectorStore: the first list, or one after the
// watch was lost for too long.
func (s *store) Replace(list []any, resourceVersion string) error {
	version, err := parseVersion(resourceVersion)
	if err != nil {
		return s.unreadable(err)
	}
	if err := s.admitList(version); err != nil {
		return err
	}
	changes := make([]source.Change, 0, len(list))
	there := make(map[model.Key]int64, len(list))
	for _, object := range list {
		t, err := s.trim(object)
		if err != nil {
			return s.unreadable(err)
		}
		key := t.object.Key()
		changes = append(changes, source.Change{Key: key, Object: t.object})
		there[key] = unixNano(t.trigger)
	}
	for key := range s.objects {
		if _, ok := there[key]; !ok {
			changes = append(changes, source.Change{Key: key})
		}
	}
	s.objects, s.lost = there, false
	if !s.streaming {
		s.due = time.Time{} // the watch that goes on from this list is yet to be opened
	}
	s.sink.Apply(s.apiServers.change(changes), s.position(version))
	s.advance(version)
	s.log.Debug("listed", zap.Int("objects", len(there)), zap.Uint64("resourceVersion", version))
	s.succeeded()
	s.source.listed(s.kind.plural, s.sink)
	return nil
}

// Bookmark implements cache.ReflectorBookmarkStore: nothing has happened up to
// this version.
func (s *store) Bookmark(resourceVersion string) error {
	version, err := parseVersion(resourceVersion)
	if err != nil {
		return s.unreadable(err)
	}
	if version > s.reached() {
		s.sink.Reached(s.position(version))
		s.advance(version)
	}
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing to repeat.
func (s *store) Resync() error { return nil }

func (s *store) position(version uint64) map[string]uint64 {
	return map[string]uint64{s.kind.plural: version}
}

func versionText(version uint64) string { return strconv.FormatUint(version, 10) }

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
