// SPDX-License-Identifier: Apache-2.0

// Package faults is a test: everything that can happen to a cluster happens to
// one under load, one thing after another and then at random, and every request
// is counted.
package faults
