// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Verifying the programs takes most of the time that opening a dataplane does.
// So beside their pins stands a record of what was pinned: a digest of
// everything that loading them depended on, and the kernel's id of each. An
// agent that would load the same opens the pins instead. Whatever is in doubt
// makes the record worthless, and the programs are loaded anew.

// programsRecord is a symbolic link, the one kind of file on a BPF filesystem
// that holds text. It is removed before pins change and made after them, so
// that it never speaks for half of them.
const programsRecord = "record"

// recordVersion begins a record; another begins one of another form.
const recordVersion = "1"

// digest is of everything that loading the programs depends on: the kernel, the
// objects, the variants chosen, and the maps that they are loaded on.
func (d *Dataplane) digest(maps map[string]*ebpf.Map) (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("name the kernel: %w", err)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n", unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Version[:]))
	fmt.Fprintf(h, "objects %s\n", d.describedDigest)
	for _, o := range d.objects {
		fmt.Fprintf(h, "load %s\n", o.name)
	}
	variants := d.variants()
	for _, name := range sortedKeys(variants) {
		fmt.Fprintf(h, "%s %t\n", name, variants[name])
	}
	for _, name := range sortedKeys(maps) {
		id, err := kernelID(maps[name])
		if err != nil {
			return "", fmt.Errorf("map %s: %w", name, err)
		}
		fmt.Fprintf(h, "map %s %d\n", name, id)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// variants are the values of the objects' constants.
func (d *Dataplane) variants() map[string]bool {
	return map[string]bool{
		"have_set_retval": !d.opts.NoSetRetval && haveSetRetval() == nil,
		"have_mptcp_sock": !d.opts.NoMPTCPSock && haveMPTCPSock() == nil,
	}
}

// adoptPrograms opens the pinned programs of dir if they are what would be
// loaded. It reports whether they are.
func (d *Dataplane) adoptPrograms(dir string) bool {
	want, err := d.digest(d.maps)
	if err != nil {
		return false
	}
	digest, ids, err := readProgramsRecord(dir)
	if err != nil || digest != want {
		return false
	}
	programs := make(map[string]*ebpf.Program, len(ids))
	for name, id := range ids {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, name), nil)
		if err == nil {
			programs[name] = p
			var have ebpf.ProgramID
			if have, err = kernelID(p); err == nil && have == id {
				continue
			}
		}
		programSet{programs: programs}.close()
		return false
	}
	d.programSet = programSet{programs: programs, ids: ids}
	return true
}

// readProgramsRecord returns the digest of a record, and the programs' ids by
// name.
func readProgramsRecord(dir string) (digest string, ids map[string]ebpf.ProgramID, err error) {
	text, err := os.Readlink(filepath.Join(dir, programsRecord))
	if err != nil {
		return "", nil, err
	}
	fields := strings.Fields(text)
	if len(fields) < 3 || fields[0] != recordVersion {
		return "", nil, errors.New("record of another form")
	}
	ids = make(map[string]ebpf.ProgramID, len(fields)-2)
	for _, f := range fields[2:] {
		name, number, _ := strings.Cut(f, "=")
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return "", nil, fmt.Errorf("record of program %s: %w", name, err)
		}
		ids[name] = ebpf.ProgramID(id)
	}
	return fields[1], ids, nil
}

// pinPrograms replaces what is pinned in dir by the set, which is loaded on the
// maps, so that every program can be inspected by path and the next agent adopts
// them.
func (d *Dataplane) pinPrograms(dir string, set programSet, on map[string]*ebpf.Map) error {
	record := filepath.Join(dir, programsRecord)
	if err := os.Remove(record); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove record of programs: %w", err)
	}
	of, err := d.digest(on)
	if err != nil {
		return err
	}
	text := []string{recordVersion, of}
	for _, name := range sortedKeys(set.programs) {
		path := filepath.Join(dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove old pin of program %s: %w", name, err)
		}
		if err := pinAt(set.programs[name], path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		text = append(text, fmt.Sprintf("%s=%d", name, set.ids[name]))
	}
	if err := os.Symlink(strings.Join(text, " "), record); err != nil {
		return fmt.Errorf("write record of programs: %w", err)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
