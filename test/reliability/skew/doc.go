// SPDX-License-Identifier: Apache-2.0

// Package skew runs the release before beside the present one: its agents with
// present calculators and the other way round, one after the other on a node
// and side by side in a cluster, on real traffic. The release's programs are
// built from the repository's history; what it speaks is kept in
// proto/testdata/releases.
package skew
