// SPDX-License-Identifier: Apache-2.0

// Package kernels runs the programs and their tests on other kernels than the
// machine's own, each in a virtual machine.
package kernels
