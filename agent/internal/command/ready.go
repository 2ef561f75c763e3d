// SPDX-License-Identifier: Apache-2.0

package command

import (
	"github.com/millrace-project/millrace/agent/internal/applier"
	"github.com/millrace-project/millrace/agent/internal/held"
)

// notReady tells why the node is of no use yet; empty if it is. A node that was
// told everything once is, whether or not there are calculators now.
func notReady(status applier.Status, meta held.Meta) string {
	switch {
	case !status.Restored:
		return "the kernel is being programmed with what the log held"
	case !meta.InSync:
		return "no calculator has told this node everything yet"
	}
	return ""
}
