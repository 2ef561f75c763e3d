// SPDX-License-Identifier: Apache-2.0

package dir_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/millrace-project/millrace/services/calculator/internal/source"
	"github.com/millrace-project/millrace/services/calculator/internal/source/dir"
)

var _ source.Overtaken = (*dir.Source)(nil)

// has tells whether something holds of the sink.
func (d *directory) has(condition func(*sink) bool) func() bool {
	return func() bool {
		d.sink.mu.Lock()
		defer d.sink.mu.Unlock()
		return condition(d.sink)
	}
}

// An agent may know of a version from a clock that was an hour ahead. It is
// served all the same, and what changes from then on is newer still.
func TestClockSetBack(t *testing.T) {
	d := watch(t, t.TempDir())
	d.write("a.yaml", service("a", 80))
	d.expectServices("default/a:80")
	future := uint64(time.Now().Add(time.Hour).UnixNano())
	d.source.Ahead("n1", "dir/0", map[string]uint64{"dir": future})
	d.eventually("the agent's version is reached", d.has(func(s *sink) bool { return s.reached >= future }))
	d.write("b.yaml", service("b", 80))
	d.eventually("there is a newer version", d.has(func(s *sink) bool { return len(s.objects) == 2 && s.position > future }))
}

// The directory is read again before anything is claimed about it.
func TestOvertakenReadsAgain(t *testing.T) {
	d := watch(t, t.TempDir())
	for i := range 20 {
		d.write(fmt.Sprintf("%d.yaml", i), service(fmt.Sprint("s", i), 80))
		now := uint64(time.Now().UnixNano())
		d.source.Ahead("n1", "dir/0", map[string]uint64{"dir": now})
		d.eventually("the agent's version is reached", d.has(func(s *sink) bool { return s.reached >= now }))
		if with := d.sink.reachedWith; with != i+1 {
			t.Fatalf("%d objects were handed over when the version was told, want %d", with, i+1)
		}
	}
}
