// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Close stops every process and removes everything of the cluster.
func (c *Cluster) Close() error {
	err := removeCluster(c.Options.Name)
	for _, process := range c.processes {
		<-process.done
	}
	if c.lock != nil {
		c.lock.Close()
	}
	return err
}

// Keep lets the cluster and its processes outlive this one. Remove removes
// it.
func (c *Cluster) Keep() error {
	if err := c.save(true); err != nil {
		return err
	}
	return c.lock.Close()
}

// Load finds a cluster that was left up by Keep.
func Load(name string) (*Cluster, error) {
	state, err := loadState(clusterDir(name))
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", name, err)
	}
	return plan(state.Options, filepath.Dir(state.Cgroup)), nil
}

// Remove removes a cluster by name, whoever built it, unless a running
// process uses it. It tells whether there was one.
func Remove(name string) (bool, error) {
	base, err := lockBase()
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", baseDir, err)
	}
	defer base.Close()
	lock, err := lockDir(clusterDir(name), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("cluster %s: %w", name, ErrInUse)
	}
	defer lock.Close()
	return true, removeCluster(name)
}

// removeCluster removes whatever exists of a cluster, in whatever state its
// building or its life was broken off.
func removeCluster(name string) error {
	dir := clusterDir(name)
	cgroups := map[string]bool{}
	if root, err := CgroupRoot(); err == nil {
		cgroups[filepath.Join(root, dirPrefix+name)] = true
	}
	if state, err := loadState(dir); err == nil {
		cgroups[state.Cgroup] = true
	}
	for cgroup := range cgroups {
		if err := killCgroup(cgroup); err != nil {
			return err
		}
	}
	// Links pinned there go with the mount, before the devices and cgroups
	// they are attached to.
	if err := unmountBelow(dir); err != nil {
		return err
	}
	for cgroup := range cgroups {
		if err := removeCgroup(cgroup); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove state directory: %w", err)
	}
	return nil
}

// unmountBelow unmounts all mount points below a directory.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}

func mountsBelow(dir string) ([]string, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var points []string
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, lines.Err()
}
