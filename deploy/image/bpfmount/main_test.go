// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const helperDir = "BPFMOUNT_TEST_DIR"

// TestMain runs the helper of TestMount in its mount namespace.
func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		if err := mountTwice(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// mountTwice mounts where nothing is mounted, then where it is mounted.
func mountTwice(dir string) error {
	// Nothing of what follows may reach the machine's own namespace.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	for range 2 {
		if err := mount(dir); err != nil {
			return err
		}
		if mounted, err := isMounted(dir); err != nil || !mounted {
			return fmt.Errorf("mounted is %t: %w", mounted, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	if n := strings.Count(string(mounts), " "+dir+" "); n != 1 {
		return fmt.Errorf("%s is mounted %d times", dir, n)
	}
	return nil
}

func TestMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if mounted, err := isMounted(dir); err != nil || mounted {
		t.Errorf("outside of the namespace: mounted %t, error %v", mounted, err)
	}
}

func TestMountFails(t *testing.T) {
	if err := mount("/nonesuch"); err == nil || !strings.Contains(err.Error(), "/nonesuch") {
		t.Errorf("mounting at a directory that is not there: %v", err)
	}
}
