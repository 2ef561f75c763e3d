// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"net"

	"github.com/millrace-project/millrace/test/testbed"
)

// inNetNS is [testbed.InNetNS], or just calls f if the path is empty.
func inNetNS(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	return testbed.InNetNS(netns, f)
}

// dialNetNS returns a dial function whose sockets are in the namespace. The
// address must be numeric: only then does net open the socket on the calling
// thread.
func dialNetNS(netns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = inNetNS(netns, func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}
