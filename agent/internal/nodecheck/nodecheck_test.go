// SPDX-License-Identifier: Apache-2.0

package nodecheck

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCapabilities(t *testing.T) {
	const bpf, admin, perfmon, sys = 1 << unix.CAP_BPF, 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_PERFMON, 1 << unix.CAP_SYS_ADMIN
	for _, c := range []struct {
		set  uint64
		want []string
	}{
		{bpf | admin | perfmon, nil},
		{sys | admin, nil}, // of kernels and runtimes before CAP_BPF
		{sys, []string{"CAP_NET_ADMIN"}},
		{bpf | admin, []string{"CAP_PERFMON"}},
		{admin | perfmon, []string{"CAP_BPF"}},
		{0, []string{"CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"}},
	} {
		got := missingCapabilities(c.set)
		if len(got) != len(c.want) {
			t.Errorf("%#x: %q, want %q", c.set, got, c.want)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want+" ") {
				t.Errorf("%#x: %q, want %s", c.set, got[i], want)
			}
		}
	}
	status := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(status, []byte("Name:\tx\nCapPrm:\t0\nCapEff:\t000000c000001000\nCapBnd:\t0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if set, err := effectiveCapabilities(status); err != nil || set != bpf|admin|perfmon {
		t.Errorf("read %#x, %v", set, err)
	}
	for _, path := range []string{status + "x", os.DevNull} {
		_, err := effectiveCapabilities(path)
		if err == nil {
			t.Errorf("%s was read", path)
		} else if !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "%!") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestBPFFilesystem(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if got := bpfFilesystem(dir); !strings.Contains(got, dir+" is not on a BPF filesystem") {
		t.Errorf("got %q", got)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := bpfFilesystem(filepath.Join(file, "x")); !strings.Contains(got, "not a directory") {
		t.Errorf("below a file: %q", got)
	}
}

// TestKernel is asked only when nothing else is missing, since its answer would
// be about that.
func TestKernel(t *testing.T) {
	asked := false
	got := Problems(t.TempDir(), func() error { asked = true; return errors.New("no loops") })
	if asked || len(got) == 0 {
		t.Errorf("asked %t, got %q", asked, got)
	}
}
