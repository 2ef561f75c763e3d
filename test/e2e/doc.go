// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the built programs on testbed clusters: a calculator that
// reads manifests, an agent on each node, and real traffic through the
// kernel. The tests need root.
package e2e
