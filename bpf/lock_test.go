// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// TestLock: one holder at a time, also after the directory was removed under it
// and made anew.
func TestLock(t *testing.T) {
	needKernel(t)
	path := pinPath(t)
	if _, err := LockPins(path, false); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a path that is not there: %v", err)
	}
	l, err := LockPins(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LockPins(path, true); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Fatalf("second holder: %v", err)
	}
	d := open(t, Options{PinPath: path, SocketsOnly: true, Lock: l})
	if err := RemovePins(path); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AttachCgroup(testCgroup(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := LockPins(path, true); !errors.Is(err, ErrLocked) {
		t.Fatalf("second holder of the new directory: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = LockPins(path, false); err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	l.Close()
}

// TestRemoveMountRoot removes the pins of a dataplane that has the whole
// filesystem, and tells what it removed.
func TestRemoveMountRoot(t *testing.T) {
	needKernel(t)
	path := pinPath(t)
	if r, err := Remove(path); err != nil || r != (Removed{}) {
		t.Errorf("nothing there: %+v, %v", r, err)
	}
	d, err := Open(testSizes(Options{PinPath: bpffs, SocketsOnly: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.AttachCgroup(testCgroup(t)); err != nil {
		t.Fatal(err)
	}
	r, err := Remove(bpffs)
	if err != nil || r.Attachments != len(cgroupPrograms) || r.Programs < r.Attachments || r.Maps < 20 {
		t.Errorf("removed %+v, %v", r, err)
	}
	for _, dir := range []string{"links", "programs", "maps"} {
		if _, err := os.Lstat(bpffs + "/" + dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
