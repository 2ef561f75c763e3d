// SPDX-License-Identifier: Apache-2.0

// Package exits kills a node's agent before any one of the system calls that
// change something, and lets such calls fail, while traffic flows.
package exits
