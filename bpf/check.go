// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// MissingError names what of the required features the kernel has not.
type MissingError struct {
	Kernel   string // release
	Features []Feature
}

// Names are those of the features.
func (e *MissingError) Names() []string {
	var names []string
	for _, f := range e.Features {
		names = append(names, f.Name)
	}
	return names
}

// ProgramsPinned tells whether programs are pinned under a pin path: then this
// kernel, since it was started, has loaded them.
func ProgramsPinned(pinPath string) bool {
	entries, err := os.ReadDir(filepath.Join(pinPath, "programs"))
	return err == nil && len(entries) > 0
}

// Error is one line.
func (e *MissingError) Error() string {
	var parts []string
	unknown := slices.ContainsFunc(e.Features, func(f Feature) bool { return errors.Is(f.Err, ebpf.ErrNotSupported) })
	for _, f := range e.Features {
		// What was forbidden could not be asked for. What the kernel does not know
		// is the better answer, as no privilege mends it.
		if !unknown && errors.Is(f.Err, unix.EPERM) {
			return fmt.Sprintf("kernel %s: this process may not use BPF; it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: %s: %s",
				e.Kernel, f.Name, oneLine(f.Err))
		}
		part := f.Name
		if text := oneLine(f.Err); text != "" {
			part += " (" + text + ")"
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("kernel %s lacks what the BPF dataplane needs: %s", e.Kernel, strings.Join(parts, "; "))
}

// oneLine is the text of an error, whose parts are joined by lines, as a list.
func oneLine(err error) string {
	return strings.Join(strings.Split(err.Error(), "\n"), ", ")
}

// Check returns a [MissingError] if one of the features is required and not
// there.
func Check(list []Feature) error {
	missing := slices.DeleteFunc(slices.Clone(list), func(f Feature) bool { return f.Present() || !f.Required })
	if len(missing) == 0 {
		return nil
	}
	return &MissingError{Kernel: KernelRelease(), Features: missing}
}

// KernelRelease is what `uname -r` prints.
func KernelRelease() string {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(uts.Release[:])
}

// Trial loads every program on maps of its own, small ones, and tells what the
// verifier made of them. It pins and attaches nothing.
func Trial(opts Options) ([]ProgramInfo, error) {
	d := &Dataplane{opts: opts}
	var infos []ProgramInfo
	for _, o := range objects {
		spec, err := o.spec()
		if err != nil {
			return nil, err
		}
		for name, m := range spec.Maps {
			if m.Type != ebpf.SkStorage && !isObjectData(name) {
				m.MaxEntries = min(m.MaxEntries, 16)
			}
			if m.InnerMap != nil {
				m.InnerMap.MaxEntries = 16
			}
		}
		programs := map[string]*ebpf.Program{}
		err = d.loadObject(o.name, spec, nil, programs)
		set := programSet{programs: programs}
		if err == nil {
			var more []ProgramInfo
			more, err = set.infos()
			infos = append(infos, more...)
		}
		set.close()
		if err != nil {
			return nil, err
		}
	}
	sortInfos(infos)
	return infos, nil
}
