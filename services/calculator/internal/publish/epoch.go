// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"strconv"
	"strings"
)

// epochOrder tells how an agent's epoch stands to the calculator's.
type epochOrder int

const (
	// epochEqual: the same, or the agent has none yet.
	epochEqual epochOrder = iota
	// epochBehind: the same cluster, whose state has been set back since the
	// agent heard of it.
	epochBehind
	// epochAhead: the same cluster, but the agent has heard of a setback that
	// the calculator has not.
	epochAhead
	// epochForeign: another cluster.
	epochForeign
)

// compareEpochs compares epochs of the form "identity/counter".
func compareEpochs(agent, calculator string) epochOrder {
	if agent == "" || agent == calculator {
		return epochEqual
	}
	agentIdentity, agentCounter, ok := splitEpoch(agent)
	identity, counter, okToo := splitEpoch(calculator)
	switch {
	case !ok || !okToo || agentIdentity != identity:
		return epochForeign
	case agentCounter < counter:
		return epochBehind
	case agentCounter > counter:
		return epochAhead
	default:
		return epochEqual
	}
}

func splitEpoch(epoch string) (identity string, counter uint64, ok bool) {
	at := strings.LastIndexByte(epoch, '/')
	if at < 0 {
		return "", 0, false
	}
	counter, err := strconv.ParseUint(epoch[at+1:], 10, 64)
	return epoch[:at], counter, err == nil
}
