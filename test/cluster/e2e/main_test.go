// SPDX-License-Identifier: Apache-2.0

// Package e2e tests what a whole cluster shows: that pods on every node reach
// services in every way, that nobody but Millrace forwards them, what the agents
// cost, and that a cluster leaves nothing behind.
package e2e

import (
	"testing"

	"github.com/millrace-project/millrace/test/cluster/clustertest"
)

func TestMain(m *testing.M) { clustertest.Main(m) }
