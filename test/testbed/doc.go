// SPDX-License-Identifier: Apache-2.0

// Package testbed builds clusters out of network namespaces: a switch, nodes
// with pods behind veth pairs, a control-plane host and an external client,
// dual stack throughout. The programs that run in it are the real ones: each
// node has its own cgroup, BPF pin directory, state directory and sockets, so
// that many agents live on one kernel.
//
// Everything of a cluster hangs below one state directory and one cgroup.
// The process that builds a cluster holds a file lock on it; a later process
// sees by the free lock that the builder is gone and removes what it left.
//
// A Linux kernel with cgroup v2 (mounted anywhere) and root are needed.
package testbed
