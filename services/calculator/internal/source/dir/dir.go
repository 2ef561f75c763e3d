// SPDX-License-Identifier: Apache-2.0

// Package dir reads ordinary Kubernetes manifests from a directory and follows
// what happens to them. Subdirectories and hidden files are not read.
//
// A directory has no transactions, so care is taken that nothing which is
// only half done takes effect: a file is read when it has been left alone for
// a moment and did not change while it was read; one that does not parse keeps
// the objects it had; one that disappears for the blink of an eye, as when an
// editor saves by renaming, keeps them too.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

const (
	// settle is how long a file must have been left alone to be read.
	settle = 5 * time.Millisecond
	// settleRemoval is how long a file must have been away, or empty, for what
	// was in it to be gone.
	settleRemoval = 200 * time.Millisecond
	// patience is how long a file that is being changed all the time is left
	// unread.
	patience = 500 * time.Millisecond
	// relook is how often a directory that has vanished is looked for.
	relook = time.Second
)

// positionKind is the kind under which the position of this source is told.
const positionKind = "dir"

// Source reads a directory.
type Source struct {
	path string
	log  *zap.Logger

	files *files
	known map[string]stamp  // of files as they were read last
	dirty map[string]*dirty // files that may have changed
	// dangling has links to what is not there. Nothing is heard when it comes.
	dangling map[string]struct{}
	version  uint64
	// ahead wakes Run when an agent knows of a higher version; aheadOf is the
	// highest one heard of.
	ahead   chan struct{}
	aheadOf atomic.Uint64
	// owed tells that the directory was listed again for such an agent, so that
	// the sink is to hear how far it was read once nothing is dirty.
	owed bool
}

// stamp tells whether a file is still the one that was read.
type stamp struct {
	size     int64
	modified time.Time
	inode    uint64
}

// dirty is a file of which something has been heard.
type dirty struct {
	first, last time.Time // heard
	gone        time.Time // since when it has been found missing
	next        time.Time // when to look, if not by what was heard
}

// New returns a source that reads the directory.
func New(path string, log *zap.Logger) *Source {
	if absolute, err := filepath.Abs(path); err == nil {
		path = absolute // so that a file has one name, however it is come by
	}
	return &Source{path: path, log: log, files: newFiles(), known: map[string]stamp{}, dirty: map[string]*dirty{},
		dangling: map[string]struct{}{}, ahead: make(chan struct{}, 1)}
}

// Name implements source.Source.
func (s *Source) Name() string { return "dir" }

// Epoch implements source.Source. A directory is one cluster for ever.
func (s *Source) Epoch() string { return "dir/0" }

// Ahead implements source.Overtaken. Versions are times of the clock, and an
// agent has a higher one if it heard of a change from a process that read the
// directory later, or when the clock was ahead of now. In both cases the
// directory as it is now is the newest that there is: it is read again, and
// then this process knows as much as anybody can.
func (s *Source) Ahead(_, _ string, position map[string]uint64) string {
	want := position[positionKind]
	for have := s.aheadOf.Load(); have < want; have = s.aheadOf.Load() {
		if s.aheadOf.CompareAndSwap(have, want) {
			break
		}
	}
	select {
	case s.ahead <- struct{}{}:
	default: // it is about to be read anyway
	}
	return ""
}

// Run implements source.Source.
func (s *Source) Run(ctx context.Context, sink source.Sink) error {
	watcher, err := fsnotify.NewBufferedWatcher(1024)
	if err != nil {
		return fmt.Errorf("setting up notifications for %s: %w", s.path, err)
	}
	defer watcher.Close()
	// Watched before it is listed: what changes between is seen twice, not
	// missed.
	if err := watcher.Add(s.path); err != nil {
		return fmt.Errorf("watching %s: %w", s.path, err)
	}
	if err := s.rescan(time.Time{}); err != nil {
		return err
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for s.process(sink, time.Now(), true); len(s.dirty) > 0; s.process(sink, time.Now(), true) {
		timer.Reset(settle) // some file is being changed at this moment
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
	sink.Synced()

	lost := false // the watch, because the directory itself went away
	for {
		wait := s.nextDue(time.Now())
		if lost || len(s.dangling) > 0 {
			wait = min(wait, relook)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			s.note(event, time.Now())
			if event.Name == s.path && event.Has(fsnotify.Remove|fsnotify.Rename) {
				lost = true
			}
		case err := <-watcher.Errors:
			s.log.Warn("notifications were lost, reading the directory again", zap.String("directory", s.path), zap.Error(err))
			s.lookAgain(sink, time.Now())
		case <-s.ahead:
			s.owed = s.lookAgain(sink, time.Now())
			s.settleAhead(sink)
		case <-timer.C:
			if lost {
				lost = s.recover(watcher, sink)
			}
			for path := range s.dangling {
				if _, err := os.Stat(path); err == nil {
					s.markDirty(path, time.Now())
				}
			}
			s.process(sink, time.Now(), false)
			s.settleAhead(sink)
		}
	}
}

// settleAhead tells that the directory has been read up to now, once that is
// so, if an agent waits to hear it. The version goes on from the agent's, so
// that a clock that was set back is made up for.
func (s *Source) settleAhead(sink source.Sink) {
	if !s.owed || len(s.dirty) > 0 {
		return
	}
	s.owed = false
	s.version = max(s.version, s.aheadOf.Load(), uint64(time.Now().UnixNano()))
	sink.Reached(map[string]uint64{positionKind: s.version})
}

// note marks what an event is about as dirty.
func (s *Source) note(event fsnotify.Event, now time.Time) {
	if event.Op == fsnotify.Chmod {
		// A change of times or rights alone; but it is also what is heard when
		// a file is removed that somebody holds open, so look all the same.
		if _, err := os.Lstat(event.Name); err == nil {
			return
		}
	}
	if isManifest(event.Name) {
		s.markDirty(event.Name, now)
		return
	}
	// Kubernetes swaps the content of a mounted volume by renaming a hidden
	// link (..data) through which all files are seen; the files themselves
	// report nothing.
	if strings.HasPrefix(filepath.Base(event.Name), "..") {
		if err := s.rescan(now); err != nil {
			s.log.Warn("could not read the directory", zap.Error(err))
		}
	}
}

func (s *Source) markDirty(path string, now time.Time) {
	d := s.dirty[path]
	if d == nil {
		d = &dirty{first: now}
		s.dirty[path] = d
	}
	d.last, d.next = now, time.Time{}
}

// rescan marks every manifest that differs from when it was read.
func (s *Source) rescan(now time.Time) error {
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return fmt.Errorf("listing %s: %w", s.path, err)
	}
	there := map[string]bool{}
	for _, entry := range entries {
		path := filepath.Join(s.path, entry.Name())
		if !isManifest(path) {
			continue
		}
		there[path] = true
		info, err := os.Stat(path)
		if err != nil || stampOf(info) != s.known[path] {
			s.markDirty(path, now)
		}
	}
	for path := range s.known {
		if !there[path] {
			s.markDirty(path, now)
		}
	}
	return nil
}

// directoryPart is the part of the source that problems with the directory
// itself belong to; no file has this name.
const directoryPart = ""

// lookAgain lists the directory again and reports whether that worked.
func (s *Source) lookAgain(sink source.Sink, now time.Time) bool {
	if err := s.rescan(now); err != nil {
		sink.SetProblems(directoryPart, []problem.Problem{{Object: documentKeyOf(s.path),
			Message: fmt.Sprintf("%v; what was read before stays in force", err)}})
		return false
	}
	sink.SetProblems(directoryPart, nil)
	return true
}

// recover watches a directory that has vanished anew. It reports whether that
// is still to be done.
func (s *Source) recover(watcher *fsnotify.Watcher, sink source.Sink) (lost bool) {
	if err := watcher.Add(s.path); err != nil {
		sink.SetProblems(directoryPart, []problem.Problem{{Object: documentKeyOf(s.path),
			Message: fmt.Sprintf("cannot be watched: %v; what was read before stays in force", err)}})
		return true
	}
	return !s.lookAgain(sink, time.Now())
}

// nextDue returns how long it takes until a dirty file is to be looked at.
func (s *Source) nextDue(now time.Time) time.Duration {
	wait := time.Hour
	for _, d := range s.dirty {
		wait = min(wait, d.due().Sub(now))
	}
	return max(wait, 0)
}

// due is when the file will have been left alone for long enough.
func (d *dirty) due() time.Time {
	if !d.next.IsZero() {
		return d.next
	}
	if limit := d.first.Add(patience); limit.Before(d.last.Add(settle)) {
		return limit
	}
	return d.last.Add(settle)
}

// mayBeBack tells whether a file is away, or empty, for so short a time that it
// may be being written anew.
func (d *dirty) mayBeBack(now time.Time) bool {
	if d.gone.IsZero() {
		d.gone = now
	}
	d.next = d.gone.Add(settleRemoval)
	return now.Before(d.next)
}

// process reads the dirty files that are due and hands over what changed.
func (s *Source) process(sink source.Sink, now time.Time, all bool) {
	var changes []source.Change
	troubled := map[string]struct{}{}
	var oldest time.Time
	// In order, so that two sources of one directory do the same.
	for _, path := range slices.Sorted(maps.Keys(s.dirty)) {
		d := s.dirty[path]
		if !all && now.Before(d.due()) {
			continue
		}
		fileChanges, paths, done := s.readFile(path, now, d)
		if !done {
			continue
		}
		delete(s.dirty, path)
		changes = append(changes, fileChanges...)
		maps.Copy(troubled, paths)
		if !d.first.IsZero() && (oldest.IsZero() || d.first.Before(oldest)) {
			oldest = d.first
		}
	}
	for path := range troubled {
		sink.SetProblems(path, s.files.problemsOf(path))
	}
	if len(changes) == 0 && !all {
		return
	}
	for i := range changes {
		changes[i].Trigger = oldest
	}
	// By the clock, so that a restart goes on where this run ended; counted,
	// so that it always grows.
	s.version = max(s.version+1, uint64(now.UnixNano()))
	sink.Apply(changes, map[string]uint64{positionKind: s.version})
}

// readFile reads a file and puts what it says in force. done is false if it is
// to be looked at again.
func (s *Source) readFile(path string, now time.Time, d *dirty) (changes []source.Change, troubled map[string]struct{}, done bool) {
	content, read, err := readWhole(path)
	var m *manifest
	delete(s.dangling, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, known := s.known[path]
		known = known || s.files.byPath[path] != nil
		target, noLink := os.Readlink(path)
		if !known && noLink != nil {
			return nil, nil, true
		}
		if _, err := os.Stat(s.path); err != nil {
			return nil, nil, true // the directory itself is away: that removes nothing
		}
		if known && d.mayBeBack(now) {
			return nil, nil, false
		}
		delete(s.known, path)
		if noLink == nil {
			s.dangling[path] = struct{}{}
			m = &manifest{}
			m.fail(documentKeyOf(path), "", fmt.Errorf("is a link to %s, which does not exist", target))
			break
		}
		keys, paths := s.files.remove(path)
		for key := range keys {
			changes = append(changes, source.Change{Key: key, Object: s.files.object(key)})
		}
		paths[path] = struct{}{}
		return changes, paths, true
	case errors.Is(err, errChanging):
		d.gone, d.next = time.Time{}, now.Add(settle)
		return nil, nil, false
	case err != nil:
		m = &manifest{}
		m.fail(documentKeyOf(path), "", err)
	case len(content) == 0 && s.files.byPath[path] != nil && d.mayBeBack(now):
		// Who writes a file anew empties it first.
		return nil, nil, false
	default:
		m = parse(path, content)
		s.known[path] = read
	}
	for _, kind := range m.ignored {
		s.log.Debug("objects of this kind are not read", zap.String("file", path), zap.String("kind", kind))
	}
	keys, paths := s.files.set(path, m)
	for key := range keys {
		changes = append(changes, source.Change{Key: key, Object: s.files.object(key)})
	}
	return changes, paths, true
}
