// SPDX-License-Identifier: Apache-2.0

// Package conformance runs Kubernetes' own end-to-end tests of networking
// against a cluster: those labelled [sig-network], less the ones that
// excluded.yaml names with a reason.
//
// The tests are chosen by name first, from what the program says that it has,
// and then run by name in several processes. So each has one result, whatever
// processes ran it, and a test that no process reports is a failure.
package conformance
