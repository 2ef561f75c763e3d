// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNetNS calls f on a thread that is in the network namespace at path netns,
// or just calls it if the path is empty. What f starts or opens belongs to
// that namespace and stays there.
func inNetNS(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	target, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("opening network namespace: %w", err)
	}
	defer target.Close()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening own network namespace: %w", err)
	}
	defer home.Close()
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace %s: %w", netns, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so that the runtime ends it with this
		// goroutine instead of running others in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leaving network namespace %s: %w", netns, back))
	}
	runtime.UnlockOSThread()
	return err
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
