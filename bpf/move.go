// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Moved is what a step of a [Mover] did.
type Moved struct {
	Seen  int // entries met in the draining map
	Moved int // of them, now in the current one
	Stay  int // of them, live but without room in the current one
	// Drained tells that the draining map was empty and is dropped.
	Drained bool
}

// Mover moves the entries of a draining map to the current one. Nobody but
// programs may write into either while a step runs: the caller keeps the sweeper
// and everything else of its kind away.
type Mover struct {
	d      *Dataplane
	g      *Generations
	prog   *ebpf.Program // of the step
	cursor ebpf.MapBatchCursor
	begun  bool
	seen   int // since the pass began
}

// NewMover returns a mover for a family's embryonic or established map.
func (d *Dataplane) NewMover(g *Generations) *Mover { return &Mover{d: d, g: g} }

// Step moves about limit entries. An entry is copied, then every program that
// may have found it before the copy ends, then what those wrote is merged into
// the copy and the entry removed: see conntrack_move_family.h. It does nothing
// when nothing drains.
func (m *Mover) Step(limit int) (Moved, error) {
	_, draining := m.g.Maps()
	if draining == nil {
		m.begun = false
		return Moved{}, nil
	}
	if !m.begun {
		if err := m.g.settleSlots(); err != nil {
			return Moved{}, err
		}
		m.cursor, m.seen, m.begun = ebpf.MapBatchCursor{}, 0, true
	}
	prog, err := m.d.cloneProgram("conntrack_move")
	if err != nil {
		return Moved{}, fmt.Errorf("map %s: program to move entries with: %w", m.g.name, err)
	}
	defer prog.Close()
	m.prog = prog
	if m.g.family == 6 {
		return moveStep[layout.V6](m, draining, limit)
	}
	return moveStep[layout.V4](m, draining, limit)
}

// cloneProgram returns a program that stays open when the dataplane's is replaced.
func (d *Dataplane) cloneProgram(name string) (*ebpf.Program, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	p := d.programs[name]
	if p == nil {
		return nil, fmt.Errorf("there is no program %s", name)
	}
	return p.Clone()
}

func moveStep[A layout.IP](m *Mover, draining *ebpf.Map, limit int) (moved Moved, err error) {
	keys, end, err := takeKeys[A](draining, &m.cursor, limit)
	if err != nil {
		return moved, fmt.Errorf("map %s: read what is draining: %w", m.g.name, err)
	}
	moved.Seen = len(keys)
	m.seen += len(keys)
	if len(keys) > 0 {
		if _, _, err := runMove(m, layout.CtMoveCopy, keys); err != nil {
			return moved, err
		}
		if err := m.d.Quiesce(); err != nil {
			return moved, fmt.Errorf("map %s: %w", m.g.name, err)
		}
		if moved.Moved, moved.Stay, err = runMove(m, layout.CtMoveSettle, keys); err != nil {
			return moved, err
		}
	}
	if !end {
		return moved, nil
	}
	m.begun = false
	if m.seen == 0 {
		if err := m.g.drop(); err != nil {
			return moved, err
		}
		moved.Drained = true
	}
	return moved, nil
}

// takeKeys reads keys from the cursor on, about limit; end tells that there are
// no more.
func takeKeys[A layout.IP](from *ebpf.Map, cursor *ebpf.MapBatchCursor, limit int) (all []layout.CtKey[A], end bool, err error) {
	size := 512 // beyond what a hash bucket holds
	keys, values := make([]layout.CtKey[A], size), make([]layout.CtEntry[A], size)
	for len(all) < limit {
		n, err := from.BatchLookup(cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return all, false, err
		}
		all = append(all, keys[:n]...)
		if err != nil {
			return all, true, nil
		}
	}
	return all, false, nil
}

// runMove runs a step of conntrack_move over all keys.
func runMove[A layout.IP](m *Mover, step layout.CtMoveStep, keys []layout.CtKey[A]) (done, stay int, err error) {
	for len(keys) > 0 {
		n := min(len(keys), layout.CtMoveBatch)
		result, err := m.prog.Run(&ebpf.RunOptions{Data: moveRequest(layout.CtMoveRequest{
			Family: uint8(m.g.family), Table: m.g.table, Step: step, Keys: uint8(n),
		}, keys[:n])})
		if err != nil {
			return done, stay, fmt.Errorf("map %s: move entries: %w", m.g.name, err)
		}
		done += int(result & 0xffff)
		stay += int(result >> 16)
		keys = keys[n:]
	}
	return done, stay, nil
}

// moveRequest is the packet that asks for keys to be moved.
func moveRequest[A layout.IP](r layout.CtMoveRequest, keys []layout.CtKey[A]) []byte {
	packet := make([]byte, layout.CtMoveRequestOffset, 1024)
	packet[12], packet[13] = 0x88, 0xb5 // a protocol of nobody
	packet = append(packet, r.Family, uint8(r.Table), uint8(r.Step), r.Keys)
	// Keys have no padding, as the kernel compares them byte by byte.
	return append(packet, unsafe.Slice((*byte)(unsafe.Pointer(&keys[0])), len(keys)*int(unsafe.Sizeof(keys[0])))...)
}
