// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Succession is how far the present programs have taken over from those of a
// release with other layouts.
type Succession struct {
	// Done: nothing is left of the past, or there was none.
	Done bool
	// Flows and Sockets have been converted by this call.
	Flows, Sockets int
	// Waiting are maps of the past that cannot be converted or found no room.
	// The programs of the past go on with what is in them, until all of it has
	// timed out.
	Waiting []string
}

const (
	// pastLasts is how long programs of the past stay with flows that nobody can
	// convert: as long as an idle flow is kept.
	pastLasts = 24 * time.Hour
	// answersLast is how long they stay with sockets whose state nobody can
	// convert: that state tells whose answers datagrams are that come in.
	answersLast = time.Minute
)

// Past tells whether a generation with other layouts is being succeeded, and
// which tables could not be converted: [Dataplane.Succeed] must not be called
// before these hold everything.
func (d *Dataplane) Past() (found bool, blank []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past == nil {
		return false, nil
	}
	return true, d.past.blank
}

// Succeed takes over from the past. It is called when the tables are filled and
// the programs are attached to the cgroup, and again until it is done. It holds
// writing while it enters flows, some thousands at a time: whoever exchanges a
// map of flows or moves its entries has to hold it, too.
func (d *Dataplane) Succeed(writing sync.Locker) (Succession, error) {
	d.succeeding.Lock()
	defer d.succeeding.Unlock()
	if found, err := d.beginSucceeding(); !found || err != nil {
		return Succession{Done: err == nil}, err
	}
	// This takes seconds where there are many flows, in which devices come and go.
	s, err := d.convertPast(writing)
	if err != nil {
		return s, err
	}
	err = d.endSucceeding(&s)
	return s, err
}

// beginSucceeding ends that the past takes up anything new, if there is a past.
func (d *Dataplane) beginSucceeding() (found bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past == nil {
		return false, nil
	}
	if err := d.standBehind(); err != nil {
		return true, err
	}
	// Routes go first. Without frontends, but with routes, the past would make a
	// plain record of what a client sends to a node port; where flow maps are
	// shared, the present programs would hit that and translate nothing. Without
	// routes it makes no plain records, and what it still translates differs in
	// this alone: flows that begin in between never take the fast path.
	for _, name := range []string{"routes_v4", "routes_v6", "frontends_v4", "frontends_v6"} {
		if err := d.emptyPast(name); err != nil {
			return true, err
		}
	}
	return true, nil
}

// convertPast converts what can be converted. The caller holds d.succeeding, as
// whoever changes d.past does.
func (d *Dataplane) convertPast(writing sync.Locker) (Succession, error) {
	s := Succession{}
	// Programs of the past that found a frontend a moment ago have ended then.
	if err := d.Quiesce(); err != nil {
		return s, err
	}
	err := errors.Join(convertFamily[layout.V4](d, d.V4, writing, &s), convertFamily[layout.V6](d, d.V6, writing, &s))
	return s, err
}

// endSucceeding removes the past if nothing is left to wait for.
func (d *Dataplane) endSucceeding(s *Succession) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	age := sinceBoot() - d.past.since
	for _, name := range []string{"sockets_v4", "sockets_v6"} {
		has, err := d.pastHas(name)
		if err != nil {
			return err
		}
		if has && !d.isShared(name) && age < answersLast {
			s.Waiting = append(s.Waiting, name)
		}
	}
	if len(s.Waiting) > 0 && age < pastLasts {
		return nil
	}
	if err := removePast(d.opts.PinPath); err != nil {
		return fmt.Errorf("remove what was before: %w", err)
	}
	d.past = nil
	if err := d.setBehind(false); err != nil {
		return err
	}
	s.Done, s.Waiting = true, nil
	return nil
}

func (d *Dataplane) pastHas(pin string) (bool, error) {
	m, err := d.openPastMap(pin)
	if m == nil || err != nil {
		return false, err
	}
	return true, m.Close()
}

// openPastMap opens a map of the past: nil if there is none. A map that cannot
// be opened is no such: what is in it would be lost.
func (d *Dataplane) openPastMap(pin string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(d.past.path, "maps", pin), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s of before: %w", pin, err)
	}
	return m, nil
}

// standBehind attaches to every device that the past is attached to and that
// nobody has asked for yet: it may be a pod's that the agent has not heard of.
func (d *Dataplane) standBehind() error {
	all, err := attachments(d.past.path)
	if err != nil {
		return err
	}
	set, err := pinnedSet(filepath.Join(d.past.path, "programs"))
	if err != nil {
		return err
	}
	defer set.close()
	names := set.byID()
	for _, a := range all {
		if a.Kind == KindCgroup || a.Severed {
			continue
		}
		runs, err := a.runs()
		if err != nil {
			return fmt.Errorf("program of %s: %w", a, err)
		}
		for _, role := range []Role{Pod, Uplink} {
			if names[runs] != deviceProgram(role, a.Hook) {
				continue
			}
			if _, err := d.attachDevice(a.Ifindex, role, a.Hook); err != nil {
				return fmt.Errorf("attach behind %s: %w", a, err)
			}
		}
	}
	return nil
}

// runs is the id of the program that an attachment runs; 0 if somebody removed
// its filter.
func (a Attachment) runs() (ebpf.ProgramID, error) {
	if a.Kind == KindClsact {
		f, err := a.filter()
		if err != nil || f == nil {
			return 0, err
		}
		return ebpf.ProgramID(f.Id), nil
	}
	l, err := link.LoadPinnedLink(a.Pin, nil)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	return info.Program, nil
}

// emptyPast removes every element of a table of the past.
func (d *Dataplane) emptyPast(name string) error {
	m, err := d.openPastMap(name)
	if m == nil || err != nil {
		return err
	}
	defer m.Close()
	var key []byte
	for {
		// Always the first key: what is removed is not walked from.
		if err := m.NextKey(nil, &key); errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read %s of before: %w", name, err)
		}
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("empty %s of before: %w", name, err)
		}
	}
}

// convertFamily converts what programs of the past keep. What is shared needs no
// conversion.
func convertFamily[A layout.IP](d *Dataplane, f *FamilyMaps, writing sync.Locker, s *Succession) error {
	suffix := fmt.Sprintf("_v%d", f.Family)
	waiting := func(name string) {
		if !slices.Contains(s.Waiting, name) {
			s.Waiting = append(s.Waiting, name)
		}
	}
	// Flows move from the embryonic to the established ones, so in this order
	// none is missed; and again until none is left.
	for {
		moved := 0
		for _, pin := range []string{"embryonic" + suffix + pinDraining, "embryonic" + suffix + pinCurrent,
			"established" + suffix + pinDraining, "established" + suffix + pinCurrent} {
			name := layoutOf(pin)
			if d.isShared(name) {
				continue
			}
			old, err := d.openPastMap(pin)
			if err != nil {
				return err
			}
			if old == nil {
				continue
			}
			convert := d.converter(name, d.past.layouts[name])
			if convert == nil {
				waiting(name)
				old.Close()
				continue
			}
			c := flowConversion[A]{old: old, convert: convert, to: f.Established, other: f.Embryonic, writing: writing}
			if name == "embryonic"+suffix {
				c.to, c.other = c.other, c.to
			}
			err = c.run()
			old.Close()
			if err != nil {
				return fmt.Errorf("convert %s: %w", name, err)
			}
			moved += c.moved
			if c.left > 0 {
				waiting(name)
			}
		}
		s.Flows += moved
		if moved == 0 {
			break
		}
	}
	for _, name := range []string{"connected" + suffix, "spilled" + suffix} {
		if d.isShared(name) {
			continue
		}
		old, err := d.openPastMap(name)
		if err != nil {
			return err
		}
		if old == nil {
			continue
		}
		if convert := d.converter(name, d.past.layouts[name]); convert == nil {
			waiting(name)
		} else {
			c := socketConversion[A]{old: old, convert: convert, f: f}
			err = c.run(name == "spilled"+suffix)
			s.Sockets += c.moved
		}
		old.Close()
		if err != nil {
			return fmt.Errorf("convert %s: %w", name, err)
		}
	}
	return nil
}
