// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"strconv"
	"strings"
)

// epochBefore tells whether an epoch is of the same cluster as another and
// older. Epochs have the form "identity/counter"; the counter only rises.
func epochBefore(epoch, other string) bool {
	identity, counter, ok := splitEpoch(epoch)
	otherIdentity, otherCounter, otherOK := splitEpoch(other)
	return ok && otherOK && identity == otherIdentity && counter < otherCounter
}

func splitEpoch(epoch string) (identity string, counter uint64, ok bool) {
	at := strings.LastIndexByte(epoch, '/')
	if at < 0 {
		return "", 0, false
	}
	counter, err := strconv.ParseUint(epoch[at+1:], 10, 64)
	return epoch[:at], counter, err == nil
}
