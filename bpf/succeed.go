// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
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
// the programs are attached to the cgroup, and again until it is done.
func (d *Dataplane) Succeed() (Succession, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.past == nil {
		return Succession{Done: true}, nil
	}
	if err := d.standBehind(); err != nil {
		return Succession{}, err
	}
	for _, name := range []string{"frontends_v4", "frontends_v6", "routes_v4", "routes_v6"} {
		if err := d.emptyPast(name); err != nil {
			return Succession{}, err
		}
	}
	// Programs of the past that found a frontend a moment ago have ended then.
	if err := d.Quiesce(); err != nil {
		return Succession{}, err
	}
	s := Succession{}
	if err := errors.Join(convertFamily[layout.V4](d, d.V4, &s), convertFamily[layout.V6](d, d.V6, &s)); err != nil {
		return s, err
	}
	age := sinceBoot() - d.past.since
	for _, name := range []string{"sockets_v4", "sockets_v6"} {
		if d.pastHas(name) && !d.isShared(name) && age < answersLast {
			s.Waiting = append(s.Waiting, name)
		}
	}
	if len(s.Waiting) > 0 && age < pastLasts {
		return s, nil
	}
	if err := removePast(d.opts.PinPath); err != nil {
		return s, fmt.Errorf("remove what was before: %w", err)
	}
	d.past = nil
	if err := d.setBehind(false); err != nil {
		return s, err
	}
	s.Done, s.Waiting = true, nil
	return s, nil
}

func (d *Dataplane) pastHas(name string) bool {
	m, err := d.openPastMap(name)
	if err == nil {
		m.Close()
	}
	return err == nil
}

func (d *Dataplane) openPastMap(pin string) (*ebpf.Map, error) {
	return ebpf.LoadPinnedMap(filepath.Join(d.past.path, "maps", pin), nil)
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
	if err != nil {
		return nil // there is none
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
func convertFamily[A layout.IP](d *Dataplane, f *FamilyMaps, s *Succession) error {
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
		for _, pin := range []string{"embryonic" + suffix + "-draining", "embryonic" + suffix + "-current",
			"established" + suffix + "-draining", "established" + suffix + "-current"} {
			name := layoutOf(pin)
			old, err := d.openPastMap(pin)
			if err != nil || d.isShared(name) {
				continue
			}
			convert := d.converter(name, d.past.layouts[name])
			if convert == nil {
				waiting(name)
				old.Close()
				continue
			}
			c := flowConversion[A]{old: old, convert: convert, to: f.Established.Current(), other: f.Embryonic.Current()}
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
		old, err := d.openPastMap(name)
		if err != nil || d.isShared(name) {
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
