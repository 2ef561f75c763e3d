// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// When a release lays maps out otherwise than the pinned ones are, both
// generations of maps and programs run side by side for a while. The pins of the
// earlier one move to a directory of their own:
//
//	past/maps, past/links, past/programs
//
// Its attachments stay as they are. New maps are made and filled with the
// converted content of the old tables, programs are loaded on them, and attached
// at every hook behind those of the past. A program passes on what it does not
// know; so the past goes on with all flows and sockets, and the new programs do
// nothing yet. Then ([Dataplane.Succeed]) the past's routes and frontends are
// removed one by one: what begins from then on is the new programs'. Flows and
// sockets of the past are converted one by one: entered in the new maps first,
// then removed from the old ones, and with that removal the past passes their
// packets on. When nothing is left there, its attachments go.
//
// At every instant each flow is known to one generation at least, and the
// earlier one decides; nothing is held up and nothing is asked twice. Every step
// can be repeated, so an agent that is killed in between goes on at its next
// start.
const (
	pastName = "past"
	// retiringName is the directory while pins move there.
	retiringName = "past~"
	// sinceRecord tells when that began.
	sinceRecord = "since"
)

// past is the generation before.
type past struct {
	path    string
	layouts map[string]string // digests by map
	since   time.Duration     // since boot
	// blank are tables that nobody could convert, which the agent has to fill.
	blank []string
}

func pastPath(pinPath string) string { return filepath.Join(pinPath, pastName) }

// sinceBoot is a clock that goes on from agent to agent.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // cannot fail on Linux
	}
	return time.Duration(ts.Nano())
}

// retire makes what is pinned the past.
func retire(pinPath string) error {
	path := filepath.Join(pinPath, retiringName)
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("create pin directory: %w", err)
	}
	return finishRetiring(pinPath)
}

// finishRetiring moves the pins that have not moved yet, if moving has begun.
func finishRetiring(pinPath string) error {
	path := filepath.Join(pinPath, retiringName)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// What is left of a past before this one would be in the way for ever.
	if exists(pastPath(pinPath)) {
		if err := removePast(pinPath); err != nil {
			return fmt.Errorf("remove what was before: %w", err)
		}
	}
	for _, dir := range []string{"links", "programs", "maps"} {
		if _, err := os.Lstat(filepath.Join(path, dir)); err == nil {
			continue
		}
		if err := os.Rename(filepath.Join(pinPath, dir), filepath.Join(path, dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s aside: %w", dir, err)
		}
	}
	since := filepath.Join(path, sinceRecord)
	if err := os.Symlink(strconv.FormatInt(int64(sinceBoot()), 10), since); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("note the time: %w", err)
	}
	if err := os.Rename(path, pastPath(pinPath)); err != nil {
		return fmt.Errorf("set pins aside: %w", err)
	}
	return nil
}

// reserved is the part of the source ports that only successors use.
const reserved = 20

// SNATPorts returns which of the source ports first to last the programs are to
// use now. Two generations that run side by side do not know each other's
// flows, so they must not give one port to two of them. Each leaves a twentieth
// of the ports at one end of the range alone, in turns at the upper and the
// lower end, and its successor begins with these.
func (d *Dataplane) SNATPorts(first, last uint16) (uint16, uint16) {
	d.configMu.Lock()
	behind := d.behind
	d.configMu.Unlock()
	n := (uint32(last) - uint32(first) + 1) / reserved
	if n == 0 {
		return first, last
	}
	switch k := uint16(n); {
	case d.turn == 0 && behind:
		return first, first + k - 1
	case d.turn == 0:
		return first, last - k
	case behind:
		return last - k + 1, last
	default:
		return first + k, last
	}
}

// openPast finds the past, if there is one.
func (d *Dataplane) openPast() error {
	path := pastPath(d.opts.PinPath)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p := &past{path: path}
	var err error
	if p.layouts, err = readLayouts(filepath.Join(path, "maps")); err != nil {
		return err
	}
	text, _ := os.Readlink(filepath.Join(path, sinceRecord))
	since, _ := strconv.ParseInt(text, 10, 64)
	p.since = time.Duration(since)
	d.past = p
	if d.layouts == nil {
		if d.layouts, err = describeLayouts(d.described); err != nil {
			return err
		}
	}
	if err := d.doubtPast(); err != nil {
		return err
	}
	for _, name := range tables {
		if d.converter(name, p.layouts[name]) == nil {
			p.blank = append(p.blank, name)
		}
	}
	return d.sharePast()
}

// doubtPast forgets layouts that cannot be those of the maps, whatever the
// record says.
func (d *Dataplane) doubtPast() error {
	spec, err := d.mapSpecs()
	if err != nil {
		return err
	}
	for name, s := range spec.Maps {
		if isObjectData(name) {
			continue // never pinned
		}
		pin := name
		if s.InnerMap != nil {
			pin, s = name+pinCurrent, s.InnerMap
		}
		m, err := d.openPastMap(pin)
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if compatible(s, m) != nil && d.past.layouts[name] == d.layouts.digest(name) {
			delete(d.past.layouts, name)
		}
		m.Close()
	}
	return nil
}

// changeLayouts sets what is pinned aside if a map is not what the objects want,
// and writes down what will be pinned.
func (d *Dataplane) changeLayouts() error {
	dir := filepath.Join(d.opts.PinPath, "maps")
	d.turn = readTurn(dir)
	if _, err := os.Lstat(filepath.Join(dir, layoutsRecord)); err != nil {
		if before := filepath.Join(pastPath(d.opts.PinPath), "maps"); exists(before) {
			// An agent ended between setting pins aside and writing this record.
			d.turn = 1 - readTurn(before)
		}
	}
	if len(stages(d.opts.PinPath)) == 0 && d.layoutsAreOfObjects(dir) {
		return nil
	}
	var err error
	if d.layouts, err = describeLayouts(d.described); err != nil {
		return err
	}
	changed, err := d.layoutsChanged(dir)
	if err != nil {
		return err
	}
	if changed {
		d.turn = 1 - d.turn
		// The generation before the one that becomes the past has had its time.
		for _, step := range []func(string) error{removePast, retire, makePinDirs} {
			if err := step(d.opts.PinPath); err != nil {
				return err
			}
		}
	}
	return d.writeLayouts()
}

// layoutsChanged compares the pinned maps with those that the objects want.
func (d *Dataplane) layoutsChanged(dir string) (bool, error) {
	have, err := readLayouts(dir)
	if err != nil {
		return false, err
	}
	spec, err := d.mapSpecs()
	if err != nil {
		return false, err
	}
	for name, s := range spec.Maps {
		if isObjectData(name) {
			continue
		}
		same, err := d.sameLayout(name, s, have)
		if err != nil || !same {
			return true, err
		}
	}
	return false, nil
}

// isShared tells whether the past's map, by the name of its pin, goes on as the
// present one: layouts are the same and both generations may use it at once.
// Tables are no such maps, as they are emptied.
func (d *Dataplane) isShared(pin string) bool {
	name := layoutOf(pin)
	want := d.layouts.digest(name)
	return name != "config" && !(isTable(name) && name != "ids") && want != "" && d.past.layouts[name] == want
}

// sharePast pins the maps that go on.
func (d *Dataplane) sharePast() error {
	entries, err := os.ReadDir(filepath.Join(d.past.path, "maps"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list the maps of before: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if !d.isShared(name) {
			continue
		}
		if _, err := os.Lstat(d.mapPin(name)); err == nil {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(d.past.path, "maps", name), nil)
		if err != nil {
			return fmt.Errorf("open map %s of before: %w", name, err)
		}
		err = pinAt(m, d.mapPin(name))
		m.Close()
		if err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// fromPast makes a new map hold what the past's does, before it is pinned. Maps
// that programs write to are converted later, when they do so no more.
func (d *Dataplane) fromPast(name string, m *ebpf.Map) error {
	if !isTable(name) && name != "config" {
		return nil
	}
	old, err := d.openPastMap(name)
	if old == nil || err != nil {
		return err
	}
	defer old.Close()
	convert := d.converter(name, d.past.layouts[name])
	if convert == nil {
		return nil // the agent fills it
	}
	return eachRaw(old, func(r rawElements) error {
		out, n := newRawElements(m, r.len()), 0
		for i := range r.len() {
			k, v := convert(r.key(i), r.value(i))
			if k == nil {
				continue
			}
			copy(out.key(n), k)
			copy(out.value(n), v)
			n++
		}
		return out.first(n).put(m)
	})
}

// pastSize is how large a new map must be at least, to hold what the past's does.
func (d *Dataplane) pastSize(pin string) (uint32, error) {
	m, err := d.openPastMap(pin)
	if m == nil || err != nil {
		return 0, err
	}
	defer m.Close()
	return m.MaxEntries(), nil
}

// pastPin is where the past's attachment is pinned that stands at the place of a
// pin of the present.
func (d *Dataplane) pastPin(pin string) string {
	return filepath.Join(pastPath(d.opts.PinPath), "links", filepath.Base(pin))
}

// removePast ends what is left of the past.
func removePast(pinPath string) error {
	path := pastPath(pinPath)
	errs := removeAttachments(path)
	// The directory that tells of the past goes in one step; what is pinned in
	// it is nothing that anybody looks for.
	return errors.Join(append(errs, os.RemoveAll(path))...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// elsewhere is the directory of the other generation's attachments.
func elsewhere(pin string) string {
	dir := filepath.Dir(pin)
	if parent := filepath.Dir(dir); filepath.Base(parent) == pastName {
		return filepath.Join(filepath.Dir(parent), "links", filepath.Base(pin))
	}
	return filepath.Join(strings.TrimSuffix(dir, "links"), pastName, "links", filepath.Base(pin))
}
