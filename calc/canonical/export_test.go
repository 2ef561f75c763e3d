// SPDX-License-Identifier: Apache-2.0

package canonical

import dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"

// Encoding is what Version is the hash of.
func Encoding(resource *dataplanev1.Resource) []byte {
	e := new(encoder)
	encode(e, resource)
	return e.buffer
}
