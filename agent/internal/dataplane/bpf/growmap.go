// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// GrowMap implements dataplane.Dataplane.
func (p *Plane) GrowMap(_ context.Context, name string, entries uint32) (before uint32, err error) {
	size, known := p.kernel.Capacities()[name]
	if !known {
		return 0, fmt.Errorf("%q: %w", name, dataplane.ErrNoMap)
	}
	before = uint32(size)
	if have, table := p.kernel.TableSizes()[name]; table {
		if entries <= have {
			return before, fmt.Errorf("%s: %w: %d", name, dataplane.ErrNotLarger, have)
		}
		return before, p.growTable(name, entries)
	}
	err = p.options.GrowConntrack(name, entries)
	switch {
	case err == nil:
	case errors.Is(err, conntrack.ErrUnknownMap):
		err = fmt.Errorf("%s: %w", name, dataplane.ErrFixedSize)
	case errors.Is(err, mbpf.ErrMoving):
		err = fmt.Errorf("%s: %w", name, dataplane.ErrMoving)
	case errors.Is(err, mbpf.ErrNotLarger):
		err = fmt.Errorf("%s: %w: %d", name, dataplane.ErrNotLarger, before)
	}
	return before, err
}

// growTable replaces a table that services are programmed into.
func (p *Plane) growTable(name string, entries uint32) error {
	if p.growTo(map[string]uint32{name: entries}) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.full, name) // what was asked for is not to be tried again by itself
	fault := p.growthFault
	if !p.unpinned {
		p.growthFault = ""
	}
	return errors.New(fault)
}
