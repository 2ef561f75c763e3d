// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func (d *Dataplane) mapPin(name string) string { return filepath.Join(d.opts.PinPath, "maps", name) }

func (d *Dataplane) programsDir() string { return filepath.Join(d.opts.PinPath, "programs") }

// pinAt pins a map or program, which itself does not count as pinned there.
func pinAt[T interface {
	Clone() (T, error)
	Pin(path string) error
	Close() error
}](object T, path string) error {
	c, err := object.Clone()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Pin(path)
}

// fresh is what the name of a pin ends in that is yet to take its place; such
// names are not read back.
const fresh = "~"

// makeFresh makes what is to take the place of the pin, or record, at path: a
// crash may have left one of those.
func makeFresh(path string, create func(path string) error) error {
	if err := os.Remove(path + fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	return create(path + fresh)
}

// replacePin makes a pin, or record, in place of the one at path in one step.
func replacePin(path string, create func(path string) error) error {
	if err := makeFresh(path, create); err != nil {
		return err
	}
	return os.Rename(path+fresh, path)
}

// kernelID is the kernel's number of a map or program, never used twice while a
// machine is up and what it names lives.
func kernelID[Info interface{ ID() (ID, bool) }, ID ebpf.MapID | ebpf.ProgramID](object interface{ Info() (Info, error) }) (ID, error) {
	info, err := object.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("%w: no id", ebpf.ErrNotSupported)
	}
	return id, nil
}

// compatible returns an error unless a map has the type, flags and element sizes
// that spec wants, with however many entries.
func compatible(spec *ebpf.MapSpec, m *ebpf.Map) error {
	wanted := *spec
	wanted.MaxEntries = m.MaxEntries()
	return wanted.Compatible(m)
}

// restorePins pins anew what was pinned when somebody removed the pins under a
// running agent, so that the next one adopts it. The caller holds d.mu.
func (d *Dataplane) restorePins() error {
	if d.pinned() {
		return nil
	}
	if err := makePinDirs(d.opts.PinPath); err != nil {
		return err
	}
	if d.layouts == nil {
		layouts, err := describeLayouts(d.described)
		if err != nil {
			return err
		}
		d.layouts = layouts
	}
	if err := d.writeLayouts(); err != nil {
		return err
	}
	if d.opts.Lock != nil {
		if err := d.opts.Lock.renew(); err != nil {
			return err
		}
	}
	all := maps.Clone(d.maps)
	for _, f := range []*FamilyMaps{d.V4, d.V6} {
		for _, g := range []*Generations{f.Embryonic, f.Established} {
			current, draining := g.Maps()
			all[g.name+pinCurrent] = current
			if draining != nil {
				all[g.name+pinDraining] = draining
			}
		}
	}
	for name, m := range all {
		if _, err := os.Lstat(d.mapPin(name)); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("pin map %s again: %w", name, err)
		}
		if err := pinAt(m, d.mapPin(name)); err != nil {
			return fmt.Errorf("pin map %s again: %w", name, err)
		}
	}
	return d.pinPrograms(d.programsDir(), d.programSet, d.maps)
}

// pinned tells whether the directories of pins and the map of settings are there.
func (d *Dataplane) pinned() bool {
	for _, path := range []string{filepath.Join(d.opts.PinPath, "links"), d.programsDir(), d.mapPin("config")} {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return false
		}
	}
	return true
}

// makePinDirs creates the directories of pins.
func makePinDirs(path string) error {
	if path == "" {
		return errors.New("no pin path given")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("create pin path: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("pin path %s: %w", path, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin path %s is not on a BPF filesystem: mount one there or above", path)
	}
	for _, dir := range []string{"maps", "links", "programs"} {
		if err := os.Mkdir(filepath.Join(path, dir), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("create pin directory: %w", err)
		}
	}
	return nil
}
