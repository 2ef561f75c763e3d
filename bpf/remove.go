// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Removed counts what [Remove] found and removed.
type Removed struct{ Attachments, Programs, Maps int }

// RemovePins does what [Remove] does.
func RemovePins(path string) error {
	_, err := Remove(path)
	return err
}

// Remove removes the dataplane under a pin path: attachments first, then
// programs and maps, then the directory, unless a filesystem is mounted there.
// It needs no open Dataplane.
func Remove(path string) (r Removed, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); errors.Is(err, os.ErrNotExist) {
		return r, nil
	} else if err != nil {
		return r, fmt.Errorf("pin path %s: %w", path, err)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		// Whatever is in there is nobody's pin.
		return r, fmt.Errorf("pin path %s is not on a BPF filesystem", path)
	}
	count := func(dir string) int {
		entries, _ := os.ReadDir(filepath.Join(path, dir))
		entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return e.Type()&os.ModeSymlink != 0 })
		return len(entries)
	}
	if err := finishRetiring(path); err != nil {
		return r, err
	}
	r = Removed{Attachments: count("links"), Programs: count("programs"), Maps: count("maps")}
	errs := removeAttachments(path)
	if err := removePast(path); err != nil {
		errs = append(errs, err)
	}
	for _, dir := range []string{"links", "programs", "maps"} {
		if err := os.RemoveAll(filepath.Join(path, dir)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := removeStages(path); err != nil {
		errs = append(errs, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, unix.EBUSY) {
		errs = append(errs, err)
	}
	return r, errors.Join(errs...)
}
