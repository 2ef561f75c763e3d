// SPDX-License-Identifier: Apache-2.0

package replicas

import "testing"

// TestReplicas runs the parts one after the other on one cluster, because it
// takes longer to build than to test. Each leaves both calculators running and
// all agents in sync.
func TestReplicas(t *testing.T) {
	f := startFixture(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *fixture)
	}{
		{"resume", testResume},
		{"killed", testKilled},
		{"alone", testAlone},
		{"duplicate", testDuplicate},
		{"storm", testStorm},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(t, f) }) {
			return // what follows would fail for no reason of its own
		}
	}
}
