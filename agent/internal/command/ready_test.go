// SPDX-License-Identifier: Apache-2.0

package command

import (
	"testing"

	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/held"
)

// TestReadiness does not depend on a calculator, but on one having been there
// once.
func TestReadiness(t *testing.T) {
	for _, test := range []struct{ restored, inSync, ready bool }{
		{false, false, false}, {false, true, false}, {true, false, false}, {true, true, true},
	} {
		why := notReady(applier.Status{Restored: test.restored}, held.Meta{InSync: test.inSync})
		if (why == "") != test.ready {
			t.Errorf("%+v: %q", test, why)
		}
	}
}
