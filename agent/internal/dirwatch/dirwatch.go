// SPDX-License-Identifier: Apache-2.0

// Package dirwatch follows changes of files that somebody else writes.
package dirwatch

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Follow calls look once the directories are watched, and again after changes in
// them, until ctx ends or one of them cannot be watched any more. Changes are
// gathered for the time of settle: files are written in several steps.
func Follow(ctx context.Context, settle time.Duration, look func(), dirs ...string) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("make a watcher: %w", err)
	}
	defer watcher.Close() //nolint:errcheck // nothing is written by it
	watched := make([]string, 0, len(dirs))
	for _, dir := range dirs {
		dir = filepath.Clean(dir)
		if err := watcher.Add(dir); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		watched = append(watched, dir)
	}
	look() // what changed before is not told
	var settled <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watcher.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch %v: %w", dirs, err)
			}
		case event := <-watcher.Events:
			if event.Has(fsnotify.Remove|fsnotify.Rename) && slices.Contains(watched, filepath.Clean(event.Name)) {
				return fmt.Errorf("watch %s: it was removed", event.Name)
			}
		case <-settled:
			settled = nil
			look()
			continue
		}
		if settled == nil {
			settled = time.After(settle)
		}
	}
}
