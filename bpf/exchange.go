// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// programSet is a set of loaded programs by name.
type programSet struct {
	programs map[string]*ebpf.Program
	ids      map[string]ebpf.ProgramID
}

func (s programSet) close() {
	for _, p := range s.programs {
		p.Close()
	}
}

// byID returns the programs' names by id.
func (s programSet) byID() map[ebpf.ProgramID]string {
	names := make(map[ebpf.ProgramID]string, len(s.ids))
	for name, id := range s.ids {
		names[id] = name
	}
	return names
}

// newProgramSet notes the ids of programs.
func newProgramSet(programs map[string]*ebpf.Program) (programSet, error) {
	s := programSet{programs: programs, ids: make(map[string]ebpf.ProgramID, len(programs))}
	for name, p := range programs {
		id, err := kernelID(p)
		if err != nil {
			return s, fmt.Errorf("program %s: %w", name, err)
		}
		s.ids[name] = id
	}
	return s, nil
}

// pinnedSet opens whatever programs are pinned in a directory.
func pinnedSet(dir string) (programSet, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return programSet{}, fmt.Errorf("list pinned programs: %w", err)
	}
	programs := make(map[string]*ebpf.Program, len(entries))
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), programsRecord) {
			continue
		}
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			continue // not a program, or gone: nobody's whom we could exchange
		}
		programs[e.Name()] = p
	}
	return newProgramSet(programs)
}

// exchangeLinks gives every attachment that runs a known program the one of the
// same name in the set. One that runs something else is left to AttachCgroup and
// AttachDevice. Each attachment changes atomically.
func (d *Dataplane) exchangeLinks(known map[ebpf.ProgramID]string, to programSet) error {
	all, err := attachments(d.opts.PinPath)
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Severed {
			continue
		}
		if a.Kind == KindClsact {
			err = d.exchangeClsact(a, known, to)
		} else {
			err = exchangeLink(a.Pin, known, to)
		}
		if err != nil {
			return fmt.Errorf("exchange the program of %s: %w", a, err)
		}
	}
	return nil
}

func exchangeLink(pin string, known map[ebpf.ProgramID]string, to programSet) error {
	l, err := link.LoadPinnedLink(pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	name := known[info.Program]
	next := to.programs[name]
	if next == nil || to.ids[name] == info.Program {
		return nil
	}
	if err := l.Update(next); err != nil && !isSevered(err) {
		return err
	}
	return nil
}

// exchangeClsact does the same for a filter of the clsact qdisc.
func (d *Dataplane) exchangeClsact(a Attachment, known map[ebpf.ProgramID]string, to programSet) error {
	f, err := a.filter()
	if err != nil || f == nil { // nil: somebody removed it
		return err
	}
	name := known[ebpf.ProgramID(f.Id)]
	next := to.programs[name]
	if next == nil || to.ids[name] == ebpf.ProgramID(f.Id) {
		return nil
	}
	return replaceClsact(a, name, next)
}
