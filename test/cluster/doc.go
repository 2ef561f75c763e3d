// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on one machine: etcd,
// kube-apiserver, controllers and scheduler, and nodes that each have a kubelet
// and a containerd of their own, with Millrace installed from deploy/ as its
// users would, or with kube-proxy for comparison.
//
//	switch (network namespace with a bridge)
//	   |          |        |        |
//	control    node-1   node-2   node-3      network namespaces
//	 plane
//
// The control plane has a network namespace of its own, which is no node: it
// is what the nodes' default routes lead to, and so is a client from outside.
//
// A cluster outlives the process that started it. All that it is made of can
// be found by its name: one directory, cgroups, network namespaces. So Remove
// needs no knowledge of how far a start came.
package cluster
