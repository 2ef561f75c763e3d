// SPDX-License-Identifier: Apache-2.0

// Package leaks is a test: pods that come and go and agents that start again
// and again leave as many things in the kernel, in files and in the agent's
// process as before.
package leaks
