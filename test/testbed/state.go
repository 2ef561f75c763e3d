// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	baseDir   = "/run"
	dirPrefix = "millrace-testbed-"
	stateFile = "cluster.json"
)

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,19}$`)

// ErrKept says that a cluster of that name was left up on purpose.
var ErrKept = errors.New("a cluster of this name was left up on purpose")

// ErrInUse says that a cluster of that name is in use by a running process.
var ErrInUse = errors.New("a cluster of this name is in use by a running process")

// savedState is what a later process needs to know.
type savedState struct {
	Options Options
	Cgroup  string
	// Kept is set if the cluster is to outlive its builder.
	Kept bool
}

func clusterDir(name string) string { return filepath.Join(baseDir, dirPrefix+name) }

func (c *Cluster) netnsPath(host string) string { return filepath.Join(c.Dir, "netns", host) }
func (c *Cluster) bpfDir() string               { return filepath.Join(c.Dir, "bpf") }
func (c *Cluster) bypassCgroup() string         { return filepath.Join(c.Cgroup, "bypass") }

// LogDir is where processes log to, one file each.
func (c *Cluster) LogDir() string { return filepath.Join(c.Dir, "log") }

// ManifestDir is the directory the calculator reads.
func (c *Cluster) ManifestDir() string { return filepath.Join(c.Dir, "manifests") }

func (c *Cluster) makeDirs() error {
	dirs := []string{filepath.Join(c.Dir, "netns"), c.bpfDir(), c.LogDir(), c.ManifestDir(), filepath.Join(c.Dir, "probe"), c.bypassCgroup()}
	for _, node := range c.Nodes {
		dirs = append(dirs, node.StateDir)
	}
	for _, host := range c.Hosts() {
		dirs = append(dirs, host.Cgroup)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

func (c *Cluster) save(kept bool) error {
	data, err := json.MarshalIndent(savedState{Options: c.Options, Cgroup: c.Cgroup, Kept: kept}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(c.Dir, stateFile)
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return fmt.Errorf("save cluster state: %w", err)
	}
	return os.Rename(path+".new", path)
}

func loadState(dir string) (savedState, error) {
	var state savedState
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(data, &state); err != nil {
		return state, fmt.Errorf("read state of cluster: %w", err)
	}
	return state, nil
}

// lockBase serializes claiming and sweeping among processes. The lock is on
// the base directory itself, so that nothing is left of it.
func lockBase() (*os.File, error) { return lockDir(baseDir, unix.LOCK_EX) }

func lockDir(path string, how int) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(dir.Fd()), how); err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// claim makes the state directory of a new cluster and locks it for as long
// as this process lives. Abandoned clusters are removed on the way.
func claim(name string) (*os.File, error) {
	base, err := lockBase()
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", baseDir, err)
	}
	defer base.Close()
	if err := sweep(); err != nil {
		return nil, err
	}
	dir := clusterDir(name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		if !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("claim cluster name: %w", err)
		}
		if state, err := loadState(dir); err == nil && state.Kept {
			return nil, fmt.Errorf("cluster %s: %w", name, ErrKept)
		}
		return nil, fmt.Errorf("cluster %s: %w", name, ErrInUse)
	}
	return lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
}

// sweep removes the clusters that nobody holds a lock on and that were not
// left up on purpose. The base lock is held.
func sweep() error {
	dirs, err := filepath.Glob(clusterDir("*"))
	if err != nil {
		return err
	}
	var all error
	for _, dir := range dirs {
		if state, err := loadState(dir); err == nil && state.Kept {
			continue
		}
		lock, err := lockDir(dir, unix.LOCK_EX|unix.LOCK_NB)
		if err != nil {
			continue // In use, or just gone.
		}
		if err := removeCluster(strings.TrimPrefix(filepath.Base(dir), dirPrefix)); err != nil {
			all = errors.Join(all, fmt.Errorf("remove abandoned cluster: %w", err))
		}
		lock.Close()
	}
	return all
}
