// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/dirwatch"
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
		if err := dirwatch.Follow(ctx, settle, d.compare, d.Dir); err != nil {
			d.Log.Debug("watch --calculators-dir", zap.Error(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
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
