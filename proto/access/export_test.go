// SPDX-License-Identifier: Apache-2.0

package access

import "context"

// Try lets a call through a gate, to do.
func Try(gate *Gate, ctx context.Context, method string, do func(context.Context)) error {
	caller, err := gate.admit(ctx, method)
	if err == nil {
		do(WithCaller(ctx, caller))
	}
	return err
}
