// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the whole path from objects in a real API server to
// traffic: kube-apiserver, calculator, agents, maps, packets. Everything is in
// its tests.
package e2e
