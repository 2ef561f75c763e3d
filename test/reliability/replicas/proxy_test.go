// SPDX-License-Identifier: Apache-2.0

package replicas

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/millrace-project/millrace/test/testbed"
)

// proxy stands between agents and a calculator: it counts bytes, and cuts.
type proxy struct {
	host     *testbed.Host
	listener net.Listener
	upstream string
	pumps    sync.WaitGroup

	mu     sync.Mutex
	closed bool // to agents: connections are ended as soon as they come
	open   map[net.Conn]struct{}
	last   *traffic // of the connection that was opened last
}

// traffic is what has passed, in bytes of TCP's payload.
type traffic struct{ up, down int64 }

func (t traffic) total() int64 { return t.up + t.down }

func startProxy(t *testing.T, host *testbed.Host, listen, upstream string) *proxy {
	t.Helper()
	p := &proxy{host: host, upstream: upstream, open: map[net.Conn]struct{}{}}
	err := host.Do(func() (err error) {
		p.listener, err = net.Listen("tcp", listen)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.pumps.Go(p.accept)
	t.Cleanup(func() {
		p.listener.Close()
		p.set(false)
		p.pumps.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		down, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.pumps.Go(func() { p.relay(down) })
	}
}

func (p *proxy) relay(down net.Conn) {
	defer down.Close()
	var up net.Conn
	err := p.host.Do(func() (err error) {
		up, err = net.Dial("tcp", p.upstream)
		return err
	})
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.open[down] = struct{}{}
	count := &traffic{}
	p.last = count
	p.mu.Unlock()
	var halves sync.WaitGroup
	halves.Go(func() { p.pump(up, down, &count.up) })
	halves.Go(func() { p.pump(down, up, &count.down) })
	halves.Wait()
	p.mu.Lock()
	delete(p.open, down)
	p.mu.Unlock()
}

// pump copies until either end closes, and closes both.
func (p *proxy) pump(to, from net.Conn, count *int64) {
	_, _ = io.Copy(writer(func(data []byte) (int, error) {
		p.mu.Lock()
		*count += int64(len(data))
		p.mu.Unlock()
		return to.Write(data)
	}), from)
	to.Close()
	from.Close()
}

type writer func([]byte) (int, error)

func (w writer) Write(data []byte) (int, error) { return w(data) }

// set opens the proxy to agents, or closes it and cuts what is open.
func (p *proxy) set(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = !open
	if open {
		return
	}
	for conn := range p.open {
		conn.Close()
	}
}

// seen returns what has passed on the last connection so far.
func (p *proxy) seen() traffic {
	p.mu.Lock()
	defer p.mu.Unlock()
	return *p.last
}
