// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// kubeletSysctls are of the whole machine and written by every kubelet, so a
// node gets files in their place.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0",
	"kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// mounter mounts below a directory and keeps the first error.
type mounter struct {
	root string
	err  error
}

// mount mounts at a path below the root, which is made if it is not there.
func (m *mounter) mount(source, target, fstype string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	path := filepath.Join(m.root, target)
	if _, err := os.Lstat(path); err != nil {
		if m.err = os.MkdirAll(path, 0o755); m.err != nil {
			return
		}
	}
	if err := unix.Mount(source, path, fstype, flags, data); err != nil {
		m.err = fmt.Errorf("mounting %s (%s) at %s: %w", source, fstype, target, err)
	}
}

// enterRoot makes the node's root filesystem and changes to it.
func (s *Spec) enterRoot() error {
	// What is mounted from here on is nobody else's.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	root := filepath.Join(s.Dir, "merged")
	work := filepath.Join(s.Dir, "work")
	for _, dir := range []string{root, work, s.Root()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", s.Root(), work)
	if err := unix.Mount("overlay", root, "overlay", 0, layers); err != nil {
		return fmt.Errorf("mounting the root filesystem: %w", err)
	}
	m := &mounter{root: root}
	m.mount("/dev", "/dev", "", unix.MS_BIND|unix.MS_REC, "")
	m.mount("proc", "/proc", "proc", 0, "")
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	m.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
	m.mount("tmpfs", "/tmp", "tmpfs", 0, "mode=1777")
	m.mount(s.Programs, ProgramDir, "", unix.MS_BIND, "")
	for _, dir := range ownDirs {
		own := filepath.Join(s.Dir, filepath.Base(dir))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		m.mount(own, dir, "", unix.MS_BIND, "")
	}
	mountCgroups(m)
	s.mountSysctls(m)
	if m.err != nil {
		return m.err
	}
	return changeRoot(root)
}

// mountCgroups mounts every hierarchy where the machine has it; their root is
// the node's own cgroup, as the process is in a cgroup namespace.
func mountCgroups(m *mounter) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		m.err = err
		return
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
		return
	}
	m.mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
	for line := range strings.Lines(string(own)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		name, named := strings.CutPrefix(parts[1], "name=")
		switch {
		case named:
			m.mount("cgroup", "/sys/fs/cgroup/"+name, "cgroup", 0, "none,name="+name)
		case name == "":
			m.mount("cgroup2", "/sys/fs/cgroup/unified", "cgroup2", 0, "")
		default:
			m.mount("cgroup", "/sys/fs/cgroup/"+name, "cgroup", 0, name)
		}
	}
}

func (s *Spec) mountSysctls(m *mounter) {
	dir := filepath.Join(s.Dir, "sysctl")
	for name, value := range kubeletSysctls {
		if m.err != nil {
			return
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if m.err = os.MkdirAll(dir, 0o755); m.err != nil {
			return
		}
		if m.err = os.WriteFile(file, []byte(value+"\n"), 0o644); m.err == nil {
			m.mount(file, "/proc/sys/"+name, "", unix.MS_BIND, "")
		}
	}
}

// changeRoot leaves the machine's filesystem for the node's.
func changeRoot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// Both in one place: the new root above, the old one below, and away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the machine's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// Pods that may, mount for their node.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making mounts shared: %w", err)
	}
	return nil
}
