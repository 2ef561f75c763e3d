// SPDX-License-Identifier: Apache-2.0

// Package narrative holds the packet narratives: tests that follow packets
// through the programs of a node, step by step, in both address families.
//
// Most run single programs by BPF_PROG_TEST_RUN on packets built byte by byte,
// and verify every checksum of what comes out by computing it anew. Those named
// TestTraffic send real traffic between network namespaces. All need root and
// run in namespaces of their own. BenchmarkEstablished prints what a packet
// costs.
package narrative
