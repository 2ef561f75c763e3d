// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// A file that is emptied, as it is before it is written anew, keeps its objects
// for a moment; one that stays empty has none.
func TestEmptiedFile(t *testing.T) {
	s := New(t.TempDir(), zap.NewNop())
	path := filepath.Join(s.path, "a.yaml")
	read := func(content string, at time.Time, d *dirty) (changes []source.Change, done bool) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		changes, _, done = s.readFile(path, at, d)
		return changes, done
	}
	now := time.Now()
	if changes, done := read("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}", now, &dirty{}); !done || len(changes) != 1 {
		t.Fatalf("whole: %v, %t", changes, done)
	}
	d := &dirty{}
	if changes, done := read("", now, d); done || len(changes) != 0 {
		t.Errorf("just emptied: %v, %t", changes, done)
	}
	if changes, done := read("", now.Add(settleRemoval), d); !done || len(changes) != 1 || changes[0].Object != nil {
		t.Errorf("still empty: %v, %t", changes, done)
	}
}
