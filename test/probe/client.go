// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

// Client tells a prober in another process what to do.
type Client struct {
	http http.Client
}

// NewClient makes a client of the prober whose control socket is at path.
func NewClient(path string) *Client {
	var dialer net.Dialer
	return &Client{http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
	}}}
}

func call[Response any](c *Client, name string, request any) (Response, error) {
	var response Response
	body, err := json.Marshal(request)
	if err != nil {
		return response, err
	}
	answer, err := c.http.Post("http://probe/"+name, "application/json", bytes.NewReader(body))
	if err != nil {
		return response, fmt.Errorf("call prober: %w", err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		return response, errors.New("prober: " + string(bytes.TrimSpace(text)))
	}
	if err := json.NewDecoder(answer.Body).Decode(&response); err != nil {
		return response, fmt.Errorf("answer of prober: %w", err)
	}
	return response, nil
}

// Listen starts an echo server and returns its address.
func (c *Client) Listen(network string, address netip.AddrPort) (netip.AddrPort, error) {
	return call[netip.AddrPort](c, "listen", Listen{network, address})
}

// Unlisten stops an echo server; its open connections are cut.
func (c *Client) Unlisten(network string, address netip.AddrPort) error {
	_, err := call[struct{}](c, "unlisten", Listen{network, address})
	return err
}

// Once opens a socket, makes one exchange on it and closes it. What fails in
// the network is in the answer, the error is for the prober's own failures.
func (c *Client) Once(dial Dial, exchange Exchange) (Answer, error) {
	answers, err := c.Many(1, dial, exchange)
	if err != nil {
		return Answer{}, err
	}
	return answers[0], nil
}

// Many is Once count times.
func (c *Client) Many(count int, dial Dial, exchange Exchange) ([]Answer, error) {
	return call[[]Answer](c, "once", onceRequest{Dial: dial, Exchange: exchange, Count: count})
}

// Open opens a client socket and leaves it open.
func (c *Client) Open(dial Dial) (Opened, error) { return call[Opened](c, "open", dial) }

// Exchange makes one exchange on an open socket.
func (c *Client) Exchange(exchange Exchange) (Answer, error) {
	return call[Answer](c, "exchange", exchange)
}

// Close closes an open socket.
func (c *Client) Close(session int) error {
	_, err := call[struct{}](c, "close", session)
	return err
}
