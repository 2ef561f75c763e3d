// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// stuck is a connection on which the reader gets nothing any more once hold is
// closed, though it stays open and takes what is written.
type stuck struct {
	net.Conn
	hold, closed chan struct{}
	once         sync.Once
}

func (c *stuck) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	select {
	case <-c.hold:
		if err == nil {
			<-c.closed
			return 0, net.ErrClosed
		}
	default:
	}
	return n, err
}

func (c *stuck) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A connection that stays open and carries nothing is given up in 15 seconds;
// client-go's own bound is 45.
func TestFrozenConnectionIsGivenUp(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	hold := make(chan struct{})
	// Between the two stands what carries nothing any more once told to.
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var relays sync.WaitGroup
	t.Cleanup(func() {
		relay.Close()
		server.CloseClientConnections()
		server.Close()
		relays.Wait()
	})
	relays.Go(func() {
		for {
			down, err := relay.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				down.Close()
				return
			}
			held := &stuck{Conn: up, hold: hold, closed: make(chan struct{})}
			relays.Go(func() {
				defer held.Close()
				io.Copy(up, down) //nolint:errcheck // its end is all that matters
			})
			relays.Go(func() {
				defer down.Close()
				io.Copy(down, held) //nolint:errcheck // its end is all that matters
			})
		}
	})
	if err := boundSilence(); err != nil {
		t.Fatal(err)
	}
	client, err := connect(&rest.Config{Host: "https://" + relay.Addr().String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer client.cut()
	watcher, err := client.CoreV1().Services("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	close(hold)
	begin := time.Now()
	select {
	case <-watcher.ResultChan():
		t.Logf("given up after %v", time.Since(begin).Round(time.Millisecond))
	case <-time.After(35 * time.Second):
		t.Error("not given up")
	}
}
