// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// A Forward makes the API server reachable inside another network namespace,
// or as from far away: what it relays can be frozen and delayed.
type Forward struct {
	listener net.Listener
	conns    sync.WaitGroup
	mu       sync.Mutex
	open     map[net.Conn]struct{}
	closed   bool
	delay    time.Duration
	// freeze has the connections that carry nothing, each with a channel that
	// is closed when it carries on.
	frozen map[*relayed]chan struct{}
	relays map[*relayed]struct{}
	// icy tells that new connections are frozen too.
	icy bool
}

// relayed is one connection of a Forward.
type relayed struct{ down, up net.Conn }

// Forward accepts connections at address ("127.0.0.1:6443") inside the network
// namespace at path netns and relays them to the API server, so that a process
// there can reach it without a network between the two.
func (c *ControlPlane) Forward(netns, address string) (*Forward, error) {
	f := &Forward{open: map[net.Conn]struct{}{}, frozen: map[*relayed]chan struct{}{}, relays: map[*relayed]struct{}{}}
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
				f.relay(&relayed{down, up})
			})
		}
	})
	return f, nil
}

// Freeze stops relaying on the connections that there are, which stay open,
// and with all also on those to come.
func (f *Forward) Freeze(all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.relays {
		f.freezeLocked(r)
	}
	f.icy = all
}

func (f *Forward) freezeLocked(r *relayed) {
	if f.frozen[r] == nil {
		f.frozen[r] = make(chan struct{})
	}
}

// Thaw carries on where Freeze stopped.
func (f *Forward) Thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, frozen := range f.frozen {
		close(frozen)
	}
	clear(f.frozen)
	f.icy = false
}

// Delay lets whatever the API server sends come that much later, which zero
// ends.
func (f *Forward) Delay(by time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = by
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
	f.Thaw()
	f.conns.Wait()
	return err
}

// relay relays one connection until either end closes it, which ends both: TLS
// connections have no use for a half.
func (f *Forward) relay(r *relayed) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		r.down.Close()
		r.up.Close()
		return
	}
	f.open[r.down], f.open[r.up] = struct{}{}, struct{}{}
	f.relays[r] = struct{}{}
	if f.icy {
		f.freezeLocked(r)
	}
	f.mu.Unlock()
	var once sync.Once
	finish := func() {
		once.Do(func() {
			r.down.Close()
			r.up.Close()
		})
	}
	var halves sync.WaitGroup
	halves.Go(func() {
		defer finish()
		f.pump(r, r.up, r.down, false)
	})
	halves.Go(func() {
		defer finish()
		f.pump(r, r.down, r.up, true)
	})
	halves.Wait()
	f.mu.Lock()
	delete(f.open, r.down)
	delete(f.open, r.up)
	delete(f.relays, r)
	delete(f.frozen, r)
	f.mu.Unlock()
}

// chunk is what one read gave, to be written when it is due.
type chunk struct {
	data []byte
	due  time.Time
}

// pump relays one direction, as the Forward is told to.
func (f *Forward) pump(r *relayed, dst, src net.Conn, delayed bool) {
	queue := make(chan chunk, 1024)
	var writer sync.WaitGroup
	writer.Go(func() {
		for c := range queue {
			time.Sleep(time.Until(c.due))
			f.mu.Lock()
			frozen := f.frozen[r]
			f.mu.Unlock()
			if frozen != nil {
				<-frozen
			}
			if _, err := dst.Write(c.data); err != nil {
				src.Close() // so that reading ends; what is queued has nowhere to go
				for range queue {
				}
				return
			}
		}
	})
	buffer := make([]byte, 64<<10)
	for {
		n, err := src.Read(buffer)
		if n > 0 {
			c := chunk{data: append([]byte(nil), buffer[:n]...)}
			if delayed {
				f.mu.Lock()
				c.due = time.Now().Add(f.delay)
				f.mu.Unlock()
			}
			queue <- c
		}
		if err != nil {
			break
		}
	}
	close(queue)
	writer.Wait()
}
