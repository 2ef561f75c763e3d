// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	mbpf "github.com/millrace-project/millrace/bpf"
)

// GrowthPolicy says when tables are replaced by larger ones.
type GrowthPolicy struct {
	// Percent of a table's entries at which it is; 0 for never.
	Percent uint32
	// Limits are the sizes up to which tables grow, by name.
	Limits map[string]uint32
}

const (
	// growthPace is how often it is looked whether a table is to grow: looking
	// goes through all frontends.
	growthPace = time.Second
	// growthRetry is when a growth that failed is tried again.
	growthRetry = 30 * time.Second
)

// size returns the size that a table is to have; the one it has if it is not to
// grow.
func (g *GrowthPolicy) size(name string, fill uint64, size uint32, full bool) uint32 {
	limit := g.Limits[name]
	if g.Percent == 0 {
		return size
	}
	for size < limit && (full || fill*100 >= uint64(size)*uint64(g.Percent)) {
		size = uint32(min(2*uint64(size), uint64(limit)))
		full = false
	}
	return size
}

// toGrow returns the sizes of the tables that are to grow.
func (p *Plane) toGrow() map[string]uint32 {
	fill := p.Fill()
	p.mu.Lock()
	full := p.full
	p.full = map[string]struct{}{}
	p.mu.Unlock()
	sizes := map[string]uint32{}
	for name, have := range p.kernel.TableSizes() {
		_, noRoom := full[name]
		if want := p.options.Growth.size(name, fill[name], have, noRoom); want > have {
			sizes[name] = want
		}
	}
	return sizes
}

// Grow replaces tables by larger ones as the policy says, until ctx ends. After
// a growth it calls refresh, which is to try again what found no room, and
// grown with the tables' names.
func (p *Plane) Grow(ctx context.Context, refresh func(context.Context) error, grown func([]string)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.grow:
		}
		pause := growthPace
		if sizes := p.toGrow(); len(sizes) > 0 || p.hasUnpinned() {
			names := slices.Sorted(maps.Keys(sizes))
			if p.growTo(sizes) {
				if len(names) > 0 {
					grown(names)
				}
				pause = 0 // it may not be enough
			} else {
				pause = growthRetry
			}
			if refresh(ctx) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (p *Plane) hasUnpinned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unpinned
}

// growTo replaces tables, if any, when all that an earlier growth could not pin
// is pinned. Changes wait only while they are copied.
func (p *Plane) growTo(sizes map[string]uint32) bool {
	p.growing.Lock()
	defer p.growing.Unlock()
	if p.hasUnpinned() && !p.pinTables() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for name := range sizes {
			p.full[name] = struct{}{} // they grow when the pins are there
		}
		return false
	}
	if len(sizes) == 0 {
		return true
	}
	started := time.Now()
	g, err := p.kernel.PrepareGrowth(sizes)
	prepared := time.Now()
	if err == nil {
		p.mu.Lock()
		err = g.Exchange()
		if err == nil || errors.Is(err, mbpf.ErrPins) {
			p.services.Grow()
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(err, mbpf.ErrPins) {
		// They are larger, and not to grow again; only the pins are wanting.
		p.unpinned = true
		p.notPinned(err)
		return false
	}
	if err != nil {
		p.log.Error("replace tables by larger ones", zap.Any("sizes", sizes), zap.Error(err))
		p.growthFault = fmt.Sprintf("tables could not be replaced by larger ones: %v", err)
		for name := range sizes {
			p.full[name] = struct{}{} // so that it is tried again
		}
		return false
	}
	p.growthFault = ""
	p.log.Info("tables were replaced by larger ones", zap.Any("sizes", sizes),
		zap.Duration("preparing", prepared.Sub(started)), zap.Duration("exchanging", time.Since(prepared)))
	return true
}

// pinTables tries again to pin what a growth could not.
func (p *Plane) pinTables() bool {
	err := p.kernel.PinTables()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.notPinned(err)
		return false
	}
	p.unpinned, p.growthFault = false, ""
	p.log.Info("tables that had grown are pinned")
	return true
}

// notPinned notes why the tables in use are not pinned.
func (p *Plane) notPinned(err error) {
	p.log.Error("pin larger tables", zap.Error(err))
	p.growthFault = fmt.Sprintf("tables were replaced by larger ones that could not be pinned: %v; "+
		"it is tried again, and until then a restart would not find them", err)
	p.wakeGrow()
}

// wakeGrow has Grow look again.
func (p *Plane) wakeGrow() {
	select {
	case p.grow <- struct{}{}:
	default:
	}
}
