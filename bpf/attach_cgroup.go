// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// AttachCgroup attaches the socket programs to a cgroup of the v2 hierarchy, for
// every process in and below it. An attachment to the same cgroup that is there
// gets the new program without a gap; one to another cgroup is removed after
// its successor is in place.
func (d *Dataplane) AttachCgroup(path string) ([]Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := checkCgroup2(path); err != nil {
		return nil, err
	}
	id, err := cgroupID(path)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if err := d.restorePins(); err != nil {
		return nil, err
	}
	var out []Attachment
	for _, p := range cgroupPrograms {
		a, err := d.attachCgroup(path, id, p.name, p.attach)
		if err != nil {
			return out, fmt.Errorf("attach %s to cgroup %s: %w", p.name, path, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// checkCgroup2 demands that the path is of the hierarchy that programs can be
// attached to.
func checkCgroup2(path string) error {
	var found unix.Statfs_t
	if err := unix.Statfs(path, &found); err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	if found.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not a cgroup v2 hierarchy: mount one (mount -t cgroup2 none %s), or name the place of the one there is by --cgroup-root", path, path)
	}
	return nil
}

// DetachCgroup removes all attachments to cgroups.
func (d *Dataplane) DetachCgroup() error {
	return d.removeWhere(func(a Attachment) bool { return a.Kind == KindCgroup })
}

func (d *Dataplane) attachCgroup(path string, id uint64, name string, hook ebpf.AttachType) (Attachment, error) {
	prog := d.programs[name]
	if prog == nil {
		return Attachment{}, errors.New("no such program loaded")
	}
	a := Attachment{Kind: KindCgroup, Program: name,
		Pin: filepath.Join(d.opts.PinPath, "links", string(KindCgroup)+"-"+name)}
	same := func(info *link.Info) bool {
		c := info.Cgroup()
		return c != nil && c.CgroupId == id && ebpf.AttachType(c.AttachType) == hook
	}
	adopted, err := d.adoptLink(a.Pin, name, same)
	if err != nil || adopted {
		a.Adopted = adopted
		return a, err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: hook, Program: prog})
	if err != nil {
		return a, err
	}
	return a, pinLink(l, a.Pin)
}

// adoptLink makes the link pinned at path run the program, if the link is
// there, is attached to anything yet, and passes same.
func (d *Dataplane) adoptLink(path, program string, same func(*link.Info) bool) (bool, error) {
	if err := finishPin(path, same); err != nil {
		return false, err
	}
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, fmt.Errorf("pinned link: %w", err)
	}
	if !same(info) {
		return false, nil
	}
	if info.Program == d.ids[program] {
		return true, nil
	}
	if err := l.Update(d.programs[program]); isSevered(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("exchange program: %w", err)
	}
	return true, nil
}

// pinLink pins a new link at path in place of whatever is pinned there, which
// is detached once the new one is safe, and closes it.
func pinLink(l link.Link, path string) error {
	defer l.Close()
	if err := makeFresh(path, l.Pin); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return takePlace(path)
}

// takePlace puts the fresh pin in the place of the one at path.
func takePlace(path string) error {
	if old, err := link.LoadPinnedLink(path, nil); err == nil {
		if err := old.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !isSevered(err) {
			old.Close()
			return fmt.Errorf("detach old link: %w", err)
		}
		old.Close()
	}
	if err := os.Rename(path+fresh, path); err != nil {
		return fmt.Errorf("pin link: %w", err)
	}
	return nil
}

// finishPin goes on where a crash broke pinLink off. The fresh link is attached
// and flows may rely on it, and the kernel refuses a second one of the same
// program.
func finishPin(path string, same func(*link.Info) bool) error {
	l, err := link.LoadPinnedLink(path+fresh, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open left-over pin: %w", err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("left-over pin: %w", err)
	}
	if same(info) {
		return takePlace(path)
	}
	if err := os.Remove(path + fresh); err != nil {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	return nil
}

// isSevered tells whether an operation on a link failed because its cgroup or
// device is gone.
func isSevered(err error) bool { return errors.Is(err, unix.ENOLINK) }

// cgroupID is the id by which the kernel's link information names a cgroup: the
// inode number of its directory.
func cgroupID(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, errors.New("not a directory of the cgroup v2 hierarchy")
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
