// SPDX-License-Identifier: Apache-2.0

package conntrack

// Policy says when a map is replaced by a larger one.
type Policy struct {
	// Percent of a map's entries at which it grows; 0 for never.
	Percent uint32
	// Sizes are what maps are to have at least, by name.
	Sizes map[string]uint32
	// Limits are the sizes up to which maps grow by themselves, by name.
	Limits map[string]uint32
}

// size returns the size that a map is to have: the one it has unless it is to
// grow. entries is a count of its entries, negative if there is none; full tells
// that something found no room.
func (p *Policy) size(name string, entries int, have uint32, full bool) uint32 {
	want := max(have, p.Sizes[name])
	if !p.mayGrow(name, have) {
		return want
	}
	factor := uint64(1)
	switch {
	case full:
		// It filled up between two counts: what comes at such a pace must not fill
		// the larger map, too, before the entries of this one have moved.
		factor = 4
	case entries >= 0 && uint64(entries)*100 >= uint64(have)*uint64(p.Percent):
		factor = 2
	}
	return max(want, uint32(min(factor*uint64(have), uint64(p.Limits[name]))))
}

// mayGrow tells whether a map may become larger by itself.
func (p *Policy) mayGrow(name string, have uint32) bool {
	return p.Percent > 0 && have < p.Limits[name]
}
