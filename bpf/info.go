// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"sort"
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
	var out []ProgramInfo
	for name, p := range d.programs {
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
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}
