// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"fmt"
	"slices"
)

// ProgramInfo tells what the verifier made of a program.
type ProgramInfo struct {
	Name         string
	Instructions int    // after translation
	Verified     uint32 // instructions that the verifier walked; 0 before kernel 5.16
}

// ProgramInfos describes the loaded programs, by name.
func (d *Dataplane) ProgramInfos() ([]ProgramInfo, error) {
	d.use.RLock()
	defer d.use.RUnlock()
	infos, err := d.infos()
	sortInfos(infos)
	return infos, err
}

func (s programSet) infos() ([]ProgramInfo, error) {
	var out []ProgramInfo
	for name, p := range s.programs {
		info, err := p.Info()
		if err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
		pi := ProgramInfo{Name: name}
		if n, err := info.TranslatedSize(); err == nil {
			pi.Instructions = n / 8
		}
		pi.Verified, _ = info.VerifiedInstructions()
		out = append(out, pi)
	}
	return out, nil
}

func sortInfos(infos []ProgramInfo) {
	slices.SortFunc(infos, func(a, b ProgramInfo) int { return cmp.Compare(a.Name, b.Name) })
}
