// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"

	"github.com/millrace-project/millrace/proto/access"
)

// TestEveryRPCHasARule: an RPC without one would be refused to everybody.
func TestEveryRPCHasARule(t *testing.T) {
	_, _, serving := serve(t, &plane{})
	for _, server := range serving.servers {
		for service, info := range server.GetServiceInfo() {
			for _, method := range info.Methods {
				name := "/" + service + "/" + method.Name
				if _, ok := access.RuleOf(name); !ok {
					t.Errorf("nobody may call %s: give it a row in proto/access and docs/security.md", name)
				}
			}
		}
	}
}
