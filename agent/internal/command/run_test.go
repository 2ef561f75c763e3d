// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"slices"
	"testing"
)

// TestTogether deletes three devices before anybody looks: they are handed over
// in one go.
func TestTogether(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan uint32, 4)
	for _, index := range []uint32{3, 5, 7} {
		gone <- index
	}
	var got [][]uint32
	together(ctx, gone, func(indexes ...uint32) {
		got = append(got, indexes)
		cancel()
	})
	if len(got) != 1 || !slices.Equal(got[0], []uint32{3, 5, 7}) {
		t.Fatalf("handed over %v", got)
	}
}
