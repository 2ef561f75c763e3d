// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

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

// A Forward makes the API server reachable inside another network namespace.
type Forward struct {
	listener net.Listener
	conns    sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]struct{}
	closed   bool
}

// Forward accepts connections at address ("127.0.0.1:6443") inside the network
// namespace at path netns and relays them to the API server, so that a process
// there can reach it without a network between the two.
func (c *ControlPlane) Forward(netns, address string) (*Forward, error) {
	f := &Forward{open: map[net.Conn]struct{}{}}
	err := inNetNS(netns, func() (err error) {
		f.listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening at %s in %s: %w", address, netns, err)
	}
	dial := dialNetNS(c.opts.NetNS)
	f.conns.Go(func() {
		for {
			down, err := f.listener.Accept()
			if err != nil {
				return
			}
			f.conns.Go(func() {
				up, err := dial(context.Background(), "tcp", c.endpoint())
				if err != nil {
					down.Close()
					return
				}
				f.relay(down, up)
			})
		}
	})
	return f, nil
}

// Close stops listening, cuts the relayed connections and waits for them.
func (f *Forward) Close() error {
	err := f.listener.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.open {
		c.Close()
	}
	f.mu.Unlock()
	f.conns.Wait()
	return err
}

func (f *Forward) relay(a, b net.Conn) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		a.Close()
		b.Close()
		return
	}
	f.open[a], f.open[b] = struct{}{}, struct{}{}
	f.mu.Unlock()
	// Either end's close ends both: TLS connections have no use for a half.
	var halves sync.WaitGroup
	pump := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		a.Close()
		b.Close()
	}
	halves.Go(func() { pump(a, b) })
	halves.Go(func() { pump(b, a) })
	halves.Wait()
	f.mu.Lock()
	delete(f.open, a)
	delete(f.open, b)
	f.mu.Unlock()
}
