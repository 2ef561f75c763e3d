// SPDX-License-Identifier: Apache-2.0

// Package cgroups makes, joins and removes a cgroup of the same path in every
// hierarchy of the machine, of version 1 and 2. Whatever a cluster starts is in
// its cgroups, so it can be found and ended even if nobody remembers it.
package cgroups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// roots returns where the hierarchies are mounted.
func roots() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("finding cgroup hierarchies: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		// "... root mountpoint options - type source options"
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if kind[0] == "cgroup" || kind[0] == "cgroup2" {
			found = append(found, fields[4])
		}
	}
	if len(found) == 0 {
		return nil, errors.New("finding cgroup hierarchies: none is mounted")
	}
	return found, nil
}

// Make makes the cgroup, relative to the roots, in every hierarchy.
func Make(path string) error {
	all, err := roots()
	if err != nil {
		return err
	}
	for _, root := range all {
		dir := root
		for part := range strings.SplitSeq(path, "/") {
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making cgroup %s: %w", dir, err)
			}
			// A new cpuset of version 1 has nothing to run on.
			for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inherit(parent, dir, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func inherit(parent, dir, name string) error {
	if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
		return nil // version 2
	}
	value, err := os.ReadFile(filepath.Join(parent, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if own, err := os.ReadFile(filepath.Join(dir, name)); err == nil && len(bytes.TrimSpace(own)) > 0 {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
		return fmt.Errorf("setting up cgroup %s: %w", dir, err)
	}
	return nil
}

// Join moves the calling process into the cgroup.
func Join(path string) error {
	all, err := roots()
	if err != nil {
		return err
	}
	for _, root := range all {
		file := filepath.Join(root, path, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			return fmt.Errorf("joining cgroup %s: %w", path, err)
		}
	}
	return nil
}

// Processes returns who is in the cgroup or below it.
func Processes(path string) ([]int, error) {
	all, err := roots()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	var pids []int
	for _, root := range all {
		err := filepath.WalkDir(filepath.Join(root, path), func(dir string, entry fs.DirEntry, err error) error {
			if err != nil {
				return gone(err)
			}
			if !entry.IsDir() {
				return nil
			}
			data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil {
				return gone(err)
			}
			for field := range strings.FieldsSeq(string(data)) {
				// 0 is a process that this namespace does not see.
				if pid, err := strconv.Atoi(field); err == nil && pid > 0 && !seen[pid] {
					seen[pid] = true
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("listing cgroup %s: %w", path, err)
		}
	}
	return pids, nil
}

// gone forgives that a cgroup was removed meanwhile.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Remove kills whatever is in the cgroup or below it and removes it from every
// hierarchy. One that does not exist is fine.
func Remove(ctx context.Context, path string) error {
	if err := Kill(ctx, path); err != nil {
		return err
	}
	all, err := roots()
	if err != nil {
		return err
	}
	for {
		var last error
		for _, root := range all {
			if err := removeTree(filepath.Join(root, path)); err != nil {
				last = err
			}
		}
		if last == nil {
			return nil
		}
		// A process that was just collected leaves its cgroup a little later.
		select {
		case <-ctx.Done():
			return fmt.Errorf("removing cgroup %s: %w (%w)", path, last, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends whatever is in the cgroup or below it, and returns when it is gone.
func Kill(ctx context.Context, path string) error {
	for {
		pids, err := Processes(path)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d of cgroup %s: %w", pid, path, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ending the processes %v of cgroup %s: %w", pids, path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeTree removes a cgroup and those below it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return gone(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	return gone(unix.Rmdir(dir))
}
