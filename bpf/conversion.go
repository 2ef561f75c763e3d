// SPDX-License-Identifier: Apache-2.0

package bpf

// A Conversion takes a map's elements from the layout that an earlier release
// gave them to the present one.
type conversion struct {
	// maps that it is for.
	maps []string
	// from is the earlier layout's digest, as TestLayoutsAreConverted tells it.
	from string
	// convert returns the element in the present layout; a nil key leaves the
	// element out.
	convert func(key, value []byte) (k, v []byte)
}

// conversions are those of all releases that the present one can succeed. A
// layout that differs from a release's without an entry here fails a test; so
// write one whenever a layout changes.
var conversions []conversion

// asItIs is the conversion between equal layouts.
func asItIs(key, value []byte) (k, v []byte) { return key, value }

// converter returns how to convert a map's elements from a layout, nil if nobody
// knows.
func (d *Dataplane) converter(name, from string) func(key, value []byte) (k, v []byte) {
	if want := d.layouts.digest(name); want != "" && from == want {
		return asItIs
	}
	for _, c := range d.conversions {
		for _, m := range c.maps {
			if m == name && c.from == from {
				return c.convert
			}
		}
	}
	return nil
}
