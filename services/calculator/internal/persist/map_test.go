// SPDX-License-Identifier: Apache-2.0

package persist_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/millrace-project/millrace/services/calculator/internal/persist"
)

// Every map of a long line of successors must keep what it held when it was
// made, whatever its successors do.
func TestSuccessorsLeaveTheirAncestorsAlone(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	type generation struct {
		have persist.Map[int]
		want map[string]int
	}
	line := []generation{{want: map[string]int{}}}
	for range 50 {
		last := line[len(line)-1]
		want := maps.Clone(last.want)
		editor := last.have.Edit()
		for range random.IntN(100) {
			key := fmt.Sprint("key-", random.IntN(500))
			if random.IntN(3) == 0 {
				editor.Delete(key)
				delete(want, key)
			} else {
				value := random.Int()
				editor.Set(key, value)
				want[key] = value
			}
		}
		line = append(line, generation{editor.Map(), want})
	}
	for i, generation := range line {
		if got := maps.Collect(generation.have.All()); !maps.Equal(got, generation.want) {
			t.Fatalf("generation %d has %d keys, want %d, or values differ", i, len(got), len(generation.want))
		}
		if got, want := generation.have.Len(), len(generation.want); got != want {
			t.Errorf("generation %d: Len = %d, want %d", i, got, want)
		}
		for key, want := range generation.want {
			if got, ok := generation.have.Get(key); !ok || got != want {
				t.Errorf("generation %d: Get(%q) = %d, %v, want %d", i, key, got, ok, want)
			}
		}
	}
}

func TestUntouchedEditorSharesEverything(t *testing.T) {
	editor := persist.Map[int]{}.Edit()
	editor.Set("a", 1)
	first := editor.Map()
	editor = first.Edit()
	editor.Delete("absent")
	if editor.Map() != first {
		t.Error("deleting an absent key made a copy")
	}
}
