// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/millrace-project/millrace/test/cluster/cgroups"
	"github.com/millrace-project/millrace/test/testbed"
)

// stateRoot has a directory for each cluster. Not below /tmp, where nodes have
// a filesystem of their own.
const stateRoot = "/var/lib/millrace-clusters"

func directory(name string) string { return filepath.Join(stateRoot, name) }

// groupOf is the cgroup of all processes of a cluster, below every hierarchy.
func groupOf(name string) string { return "millrace-cluster-" + name }

// cgroup is that of a node, or of one of the control plane's processes.
func (c *Cluster) cgroup(name string) string { return groupOf(c.opts.Name) + "/" + name }

// netnsPrefix begins the names of a cluster's network namespaces.
func netnsPrefix(name string) string { return "millrace-" + name + "-" }

// Dir returns the directory with everything that the cluster keeps in files.
func (c *Cluster) Dir() string { return directory(c.opts.Name) }

// Kubeconfig returns the path of a kubeconfig with every right, which works
// from anywhere on the machine.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir(), "kubeconfig") }

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.Dir()}, parts...)...)
}

// makeDir makes the directory and the cgroups.
func (c *Cluster) makeDir() error {
	for _, dir := range []string{"pki", "log", "run"} {
		if err := os.MkdirAll(c.path(dir), 0o755); err != nil {
			return fmt.Errorf("making the cluster's directory: %w", err)
		}
	}
	return cgroups.Make(groupOf(c.opts.Name))
}

// netns is the path of one of the cluster's network namespaces.
func (c *Cluster) netns(part string) string {
	return "/run/netns/" + netnsPrefix(c.opts.Name) + part
}

// repository finds the root of the repository above the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("finding the repository: the working directory is not in it")
		}
	}
}

// helper returns the program millrace-cluster, which becomes what this process
// starts: the cluster's processes outlive this one.
func (c *Cluster) helper() (string, error) {
	dir := os.Getenv(testbed.BinDirVariable)
	if dir == "" {
		dir = filepath.Join(c.opts.Source, "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, "millrace-cluster"))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("millrace-cluster is not built: run \"make cluster-programs\", or set %s: %w", testbed.BinDirVariable, err)
	}
	return path, nil
}
