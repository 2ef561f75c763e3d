// SPDX-License-Identifier: Apache-2.0

package netfilter

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tracking returns settings in a directory of the test's, with a value.
func tracking(t *testing.T, value string) Tracking {
	t.Helper()
	tr := Tracking{SysctlDir: t.TempDir(), StateDir: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(tr.path()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tr.path(), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return tr
}

func expect(t *testing.T, tr Tracking, want string) {
	t.Helper()
	got, err := os.ReadFile(tr.path())
	if err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("the setting is %q, %v; want %q", got, err, want)
	}
}

func TestAllowAndRestore(t *testing.T) {
	tr := tracking(t, "0\n")
	for range 2 { // the second time finds its own value, which is not what was before
		if err := tr.Allow(); err != nil {
			t.Fatal(err)
		}
		expect(t, tr, "1")
	}
	for range 2 {
		if err := tr.Restore(); err != nil {
			t.Fatal(err)
		}
		expect(t, tr, "0")
	}
}

func TestRestoreLeavesWhatOthersSet(t *testing.T) {
	tr := tracking(t, "1\n")
	if err := tr.Allow(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Restore(); err != nil {
		t.Fatal(err)
	}
	expect(t, tr, "1")
}

func TestWithoutConnectionTracking(t *testing.T) {
	tr := Tracking{SysctlDir: t.TempDir(), StateDir: t.TempDir()}
	if err := tr.Allow(); err != nil {
		t.Errorf("Allow: %v", err)
	}
	if err := tr.Restore(); err != nil {
		t.Errorf("Restore: %v", err)
	}
}

func TestAllowTellsWhyNot(t *testing.T) {
	tr := tracking(t, "0\n")
	tr.StateDir = filepath.Join(tr.StateDir, "missing")
	if err := tr.Allow(); err == nil || !strings.Contains(err.Error(), liberal) {
		t.Errorf("Allow = %v, want an error that names the setting", err)
	}
	expect(t, tr, "0")
}

// TestRestoreAfterTornKeep finds what an agent left that died while it wrote.
func TestRestoreAfterTornKeep(t *testing.T) {
	tr := tracking(t, "0\n")
	if err := os.WriteFile(filepath.Join(tr.StateDir, before), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tr.Restore(); err != nil {
		t.Fatal(err)
	}
	expect(t, tr, "0")
	if _, err := os.Stat(filepath.Join(tr.StateDir, before)); !os.IsNotExist(err) {
		t.Errorf("what was left is still there: %v", err)
	}
}
