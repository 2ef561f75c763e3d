// SPDX-License-Identifier: Apache-2.0

package access

import (
	"crypto/x509/pkix"
	"slices"
	"strings"
)

// nodePrefix is what Kubernetes puts before a node's name in the subject of
// its certificate.
const nodePrefix = "system:node:"

// Certified is who shows a certificate that was verified: a node's agent if it
// is a node's, else an account as the API server would read it.
func Certified(subject pkix.Name) Caller {
	if node, ok := strings.CutPrefix(subject.CommonName, nodePrefix); ok && node != "" {
		return Caller{Kind: Agent, Name: subject.CommonName, Node: node}
	}
	return Caller{Kind: Account, Name: subject.CommonName, Groups: append(slices.Clone(subject.Organization), "system:authenticated")}
}
