// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"

	"github.com/millrace-project/millrace/bpf/layout"
)

// Pressure tells how often the family's established map had no room for a flow.
func (d *Dataplane) Pressure(family int) (layout.CtPressure, error) {
	var p layout.CtPressure
	if err := d.maps["ct_pressure"].Lookup(layout.CtTable(family), &p); err != nil {
		return p, fmt.Errorf("read ct_pressure: %w", err)
	}
	return p, nil
}

// SetConntrackLimit tells programs whether the family's established map is as
// large as it may become. If it is, they refuse new flows while it is full; if
// not, flows without room go on among the embryonic ones until it has grown.
func (d *Dataplane) SetConntrackLimit(family int, reached bool) error {
	value := uint32(0)
	if reached {
		value = 1
	}
	if err := d.maps["ct_limits"].Put(layout.CtTable(family), value); err != nil {
		return fmt.Errorf("write ct_limits: %w", err)
	}
	return nil
}
