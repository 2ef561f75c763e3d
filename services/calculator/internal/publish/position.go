// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"maps"
	"slices"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Position tells how far a source has been read, per watched kind. A Position
// is immutable once it has been handed over.
type Position map[string]uint64

func (p Position) proto() *dataplanev1.Position {
	return &dataplanev1.Position{ResourceVersions: p}
}

// Merge returns the higher of both positions in every kind.
func (p Position) Merge(other Position) Position {
	merged := maps.Clone(p)
	if merged == nil {
		merged = Position{}
	}
	for kind, version := range other {
		merged[kind] = max(merged[kind], version)
	}
	return merged
}

// behind names the kinds, with both numbers, in which p knows less than other.
// A kind that p does not know at all is not watched here, so nothing computed
// here can be older for it: without that, going back to a calculator that
// watches fewer kinds would never succeed.
func (p Position) behind(other Position) []string {
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(other)) {
		if have, ok := p[kind]; ok && have < other[kind] {
			kinds = append(kinds, fmt.Sprintf("%s %d < %d", kind, have, other[kind]))
		}
	}
	return kinds
}
