// SPDX-License-Identifier: Apache-2.0

package skew

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/millrace-project/millrace/test/testbed"
)

// relay stands between agents and the calculator and counts the bytes of what
// passes, those of HTTP/2 included.
type relay struct {
	// Address that agents dial.
	Address string

	host     *testbed.Host
	upstream string
	up, down atomic.Int64

	mu    sync.Mutex
	conns []net.Conn
}

// relayPort is the relay's, beside the calculator's on the control host.
const relayPort = 7800

func startRelay(t *testing.T, stack *testbed.Stack) *relay {
	t.Helper()
	r := &relay{
		Address:  netip.AddrPortFrom(stack.Control.IPv4, relayPort).String(),
		host:     stack.Control,
		upstream: stack.CalculatorAddress(),
	}
	var listener net.Listener
	err := stack.Control.Do(func() (err error) {
		listener, err = net.Listen("tcp", r.Address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			group.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		r.mu.Lock()
		for _, conn := range r.conns {
			conn.Close()
		}
		r.mu.Unlock()
		group.Wait()
	})
	return r
}

func (r *relay) serve(client net.Conn) {
	defer client.Close()
	var server net.Conn
	err := r.host.Do(func() (err error) {
		server, err = net.Dial("tcp", r.upstream)
		return err
	})
	if err != nil {
		return // the agent tries again
	}
	defer server.Close()
	r.mu.Lock()
	r.conns = append(r.conns, client, server)
	r.mu.Unlock()
	var group sync.WaitGroup
	group.Go(func() { pass(server, client, &r.up) })
	group.Go(func() { pass(client, server, &r.down) })
	group.Wait()
}

// pass copies until either side ends, and ends both.
func pass(to, from net.Conn, count *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		count.Add(int64(n))
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// reset begins to count anew.
func (r *relay) reset() {
	r.up.Store(0)
	r.down.Store(0)
}
