// SPDX-License-Identifier: Apache-2.0

// Package growth lets maps of running agents be replaced by larger ones, by flag
// and by policy, with agents killed in the midst of it, while traffic flows of
// which nothing may be lost.
package growth
