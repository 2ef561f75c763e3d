// SPDX-License-Identifier: Apache-2.0

// Package ctgrowth fills the conntrack maps of running agents: they grow under
// live connections, also when the agent is killed in the middle of it, and at
// their limit new connections are dropped while the old go on.
package ctgrowth
