// SPDX-License-Identifier: Apache-2.0

// Package node runs a node of a cluster as a process tree of its own: network,
// mount, UTS, IPC, PID and cgroup namespaces, a root filesystem that is the
// machine's with a private layer above, and services that are started again
// when they end, as on a machine of its own.
package node

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Spec says what a node is made of. It is read from a file by the process that
// becomes the node.
type Spec struct {
	// Name is the node's host name.
	Name string
	// NetNS is the path of its network namespace.
	NetNS string
	// Cgroup is the path below every hierarchy's root that becomes the node's
	// root.
	Cgroup string
	// Dir is the node's directory on the machine.
	Dir string
	// Programs is the directory of the Kubernetes programs, to be seen at
	// ProgramDir.
	Programs string
	// Services are started in this order.
	Services []Service
}

// Service is a program that runs as long as the node.
type Service struct {
	Name string
	Args []string
}

const (
	// ProgramDir is where a node sees the Kubernetes programs.
	ProgramDir = "/opt/kubernetes/bin"
	// ServiceDir has a file with the process id of each service that runs.
	ServiceDir = "/run/services"
)

// Root is the directory in whose place the node sees its files: what is
// written there before the node starts is found by it, and what it writes can
// be read there. Directories of their own are the ones in ownDirs.
func (s *Spec) Root() string { return filepath.Join(s.Dir, "root") }

// ownDirs do not lie on the layered root: containerd puts layers there itself,
// and kubelet mounts below its own.
var ownDirs = []string{"/var/lib/containerd", "/var/lib/kubelet"}

// Write stores the spec in the node's directory and returns its path.
func (s *Spec) Write() (string, error) {
	path := filepath.Join(s.Dir, "spec.json")
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return "", fmt.Errorf("writing the spec of %s: %w", s.Name, err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("writing the spec of %s: %w", s.Name, err)
	}
	return path, nil
}

// Read reads a spec.
func Read(path string) (*Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a node's spec: %w", err)
	}
	s := &Spec{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("reading a node's spec %s: %w", path, err)
	}
	return s, nil
}
