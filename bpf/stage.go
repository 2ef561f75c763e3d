// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// A new set of programs, and of tables when some grow, is prepared beside the
// one in use, in a directory of its own under the pin path:
//
//	next-N/maps/NAME      the tables that are replaced
//	next-N/programs/NAME  programs loaded on these, and on the maps that stay
//
// Then the tables' content is copied, each attachment gets its new program, and
// the pins move to maps/ and programs/. Between copying and moving nobody writes
// to a table, so old and new tables hold the same, and it does not matter which
// of them a program reads. An agent killed at any instant of it leaves
// attachments of which some run the old and some the new programs; the next one
// finds the names of both by their pins, takes what is in maps/ for true, which
// may be some old and some new tables, and gives every attachment a program
// that was loaded on these before it writes anything.
const stagePrefix = "next-"

type stage struct {
	d     *Dataplane
	path  string
	fresh map[string]*ebpf.Map // tables that take the place of others
	maps  map[string]*ebpf.Map // what the programs are loaded on
	programSet
}

// stages lists the directories of stages that are there.
func stages(pinPath string) []string {
	found, _ := filepath.Glob(filepath.Join(pinPath, stagePrefix+"*"))
	slices.Sort(found)
	return found
}

// newStage makes tables of the given sizes, loads the programs, and pins both.
func (d *Dataplane) newStage(sizes map[string]uint32) (_ *stage, err error) {
	s := &stage{d: d, fresh: map[string]*ebpf.Map{}, maps: maps.Clone(d.maps)}
	if s.path, err = makeStageDirs(d.opts.PinPath); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	if len(sizes) > 0 {
		spec, err := d.mapSpecs()
		if err != nil {
			return nil, err
		}
		for name, size := range sizes {
			m, err := s.makeMap(name, spec.Maps[name], size)
			if err != nil {
				return nil, err
			}
			s.fresh[name], s.maps[name] = m, m
		}
	}
	if s.programSet, err = d.load(s.maps); err != nil {
		return nil, err
	}
	return s, d.pinPrograms(s.programsDir(), s.programSet, s.maps)
}

func makeStageDirs(pinPath string) (string, error) {
	n := 0
	for _, path := range stages(pinPath) {
		if last, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), stagePrefix)); err == nil {
			n = max(n, last)
		}
	}
	path := filepath.Join(pinPath, fmt.Sprintf("%s%d", stagePrefix, n+1))
	for _, dir := range []string{path, filepath.Join(path, "maps"), filepath.Join(path, "programs")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", fmt.Errorf("create pin directory: %w", err)
		}
	}
	return path, nil
}

func (s *stage) programsDir() string { return filepath.Join(s.path, "programs") }

func (s *stage) makeMap(name string, spec *ebpf.MapSpec, size uint32) (*ebpf.Map, error) {
	if spec == nil {
		return nil, fmt.Errorf("objects have no map %s", name)
	}
	sized := spec.Copy()
	sized.MaxEntries, sized.Contents = size, nil
	m, err := ebpf.NewMap(sized)
	if err != nil {
		return nil, fmt.Errorf("create map %s of %d entries: %w", name, size, refused(err))
	}
	if err := pinAt(m, filepath.Join(s.path, "maps", name)); err != nil {
		m.Close()
		return nil, fmt.Errorf("pin map %s: %w", name, err)
	}
	return m, nil
}

// copyTables fills the new tables.
func (s *stage) copyTables() error {
	for _, name := range sortedKeys(s.fresh) {
		if err := copyMap(s.d.maps[name], s.fresh[name]); err != nil {
			return fmt.Errorf("copy map %s: %w", name, err)
		}
	}
	return nil
}

// commit moves the pins in place of those in use and makes the maps and programs
// the dataplane's. Every attachment runs the new programs by then, so there is no
// way back: what cannot be moved is pinned anew. While something is not, what is
// left of the stage stays, as the next start knows the attachments' programs by
// it; else all stages go, also those of growths that failed.
func (s *stage) commit() error {
	d := s.d
	var errs []error
	for _, name := range sortedKeys(s.fresh) {
		if err := os.Rename(filepath.Join(s.path, "maps", name), d.mapPin(name)); err != nil {
			os.Remove(d.mapPin(name)) //nolint:errcheck // pinning fails then
			if err := pinAt(s.fresh[name], d.mapPin(name)); err != nil {
				errs = append(errs, fmt.Errorf("pin map %s: %w", name, err))
			}
		}
	}
	if err := movePrograms(s.programsDir(), d.programsDir(), sortedKeys(s.programs)); err != nil {
		if err := d.pinPrograms(d.programsDir(), s.programSet, s.maps); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, removeStages(d.opts.PinPath))
	}
	d.take(s)
	return errors.Join(errs...)
}

// removeStages removes all stages, whose programs no attachment may run.
func removeStages(pinPath string) error {
	var errs []error
	for _, path := range stages(pinPath) {
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, fmt.Errorf("remove what was prepared: %w", err))
		}
	}
	return errors.Join(errs...)
}

// movePrograms moves pins and their record, which is not there while pins are
// neither the old nor the new ones.
func movePrograms(from, to string, names []string) error {
	if err := os.Remove(filepath.Join(to, programsRecord)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of programs: %w", err)
	}
	for _, name := range append(slices.Clone(names), programsRecord) {
		if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return fmt.Errorf("move pin of program %s: %w", name, err)
		}
	}
	return nil
}

// take makes the stage's maps and programs the dataplane's.
func (d *Dataplane) take(s *stage) {
	d.use.Lock()
	defer d.use.Unlock()
	// Somebody may be walking through a table, or running a program, that was
	// replaced; they are closed when nobody holds them any more.
	d.programSet, d.maps = s.programSet, s.maps
	d.assign()
}

// abandon gives the stage up; nothing must run its programs.
func (s *stage) abandon() {
	s.programSet.close()
	for _, m := range s.fresh {
		m.Close()
	}
	os.RemoveAll(s.path) //nolint:errcheck // the next start removes it
}
