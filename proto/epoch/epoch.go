// SPDX-License-Identifier: Apache-2.0

// Package epoch reads epochs: a cluster's identity and a counter that an
// operator raises after the cluster's state was set back, as "identity/counter".
// Both ends of a stream compare what the other one says with what they know.
package epoch

import (
	"strconv"
	"strings"
)

// Format makes an epoch of its parts.
func Format(identity string, counter uint64) string {
	return identity + "/" + strconv.FormatUint(counter, 10)
}

// Split takes an epoch apart; ok is false if it has not the form of one.
func Split(epoch string) (identity string, counter uint64, ok bool) {
	at := strings.LastIndexByte(epoch, '/')
	if at < 0 {
		return "", 0, false
	}
	counter, err := strconv.ParseUint(epoch[at+1:], 10, 64)
	return epoch[:at], counter, err == nil
}

// Order tells how an agent's epoch stands to a calculator's.
type Order int

const (
	// Equal: the same, or the agent has none yet.
	Equal Order = iota
	// Behind: the same cluster, whose state has been set back since the agent
	// heard of it.
	Behind
	// Ahead: the same cluster, but the agent has heard of a setback that the
	// calculator has not.
	Ahead
	// Foreign: another cluster.
	Foreign
)

// Compare tells how an agent's epoch stands to a calculator's.
func Compare(agent, calculator string) Order {
	if agent == "" || agent == calculator {
		return Equal
	}
	agentIdentity, agentCounter, ok := Split(agent)
	identity, counter, okToo := Split(calculator)
	switch {
	case !ok || !okToo || agentIdentity != identity:
		return Foreign
	case agentCounter < counter:
		return Behind
	case agentCounter > counter:
		return Ahead
	default:
		return Equal
	}
}
