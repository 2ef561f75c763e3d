// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/proto/announcement"
)

const (
	// again is how soon a directory is tried once more that could not be
	// watched. Whether it changes only decides how soon a lost agent tries
	// the new addresses; it reads them at every attempt anyway.
	again = 10 * time.Second
	// settle is for how long changes are gathered: the kubelet exchanges all
	// files by renaming one link, others write them one by one.
	settle = 100 * time.Millisecond
)

// Watch tells of changes of the directory until the context ends.
func (d *Discovery) Watch(ctx context.Context) {
	if d.Dir == "" {
		return
	}
	for ctx.Err() == nil {
		if err := d.watch(ctx); err != nil && ctx.Err() == nil {
			d.Log.Debug("watch --calculators-dir", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

func (d *Discovery) watch(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("make a watcher: %w", err)
	}
	defer watcher.Close() //nolint:errcheck // nothing is left to lose
	if err := watcher.Add(d.Dir); err != nil {
		return fmt.Errorf("watch %s: %w", d.Dir, err)
	}
	var settled <-chan time.Time
	d.compare() // it may have changed before it was watched
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watcher.Errors:
			return fmt.Errorf("watch %s: %w", d.Dir, err)
		case event := <-watcher.Events:
			if filepath.Clean(event.Name) == filepath.Clean(d.Dir) && event.Has(fsnotify.Remove|fsnotify.Rename) {
				return fmt.Errorf("watch %s: it was removed", d.Dir)
			}
			if settled == nil {
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			d.compare()
		}
	}
}

// compare tells of a change, if there is one.
func (d *Discovery) compare() {
	now := d.fingerprint()
	if now == d.seen {
		return
	}
	d.seen = now
	known := d.Look()
	d.Log.Info("the mounted calculators changed", zap.Int("addresses", len(known.Calculators)), zap.Int("authorities", len(known.Authorities)))
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// fingerprint tells two states of the files apart.
func (d *Discovery) fingerprint() string {
	if d.Dir == "" {
		return ""
	}
	k := &Known{}
	return string(d.file(k, announcement.CalculatorsKey)) + "\x00" + string(d.file(k, announcement.AuthoritiesKey))
}
