// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// maxDatagram is the largest UDP payload over IPv4.
const maxDatagram = 65507

// A server is a running echo server.
type server struct {
	address netip.AddrPort
	close   func() error
}

// serveTCP starts an HTTP server: GET / tells who answers and whom it sees,
// POST / the checksum of the body too, GET /bytes?n=N sends N bytes.
func serveTCP(name string, address netip.AddrPort) (*server, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	listener, err := config.Listen(context.Background(), "tcp", address.String())
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer := echo{Server: name, Client: addrPortOf(r.RemoteAddr)}
		answer.ID, _ = strconv.ParseUint(r.URL.Query().Get("id"), 10, 64)
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			answer.Address = addrPortOf(local.String())
		}
		if r.Method == http.MethodPost {
			hash := sha256.New()
			n, err := io.Copy(hash, r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer.Bytes, answer.Sum = n, hex.EncodeToString(hash.Sum(nil))
		}
		w.Header().Set("Content-Type", "application/json")
		// The client is gone if this fails.
		_ = json.NewEncoder(w).Encode(answer)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.Copy(w, payload(n))
	})
	httpServer := &http.Server{Handler: mux, ReadHeaderTimeout: time.Hour}
	go func() { _ = httpServer.Serve(listener) }()
	return &server{address: addrPortOf(listener.Addr().String()), close: httpServer.Close}, nil
}

// serveUDP starts a server that answers each datagram with one.
func serveUDP(name string, address netip.AddrPort) (*server, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	local := addrPortOf(conn.LocalAddr().String())
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // An ICMP error of an earlier answer.
			}
			var request datagram
			if err := json.NewDecoder(bytes.NewReader(buffer[:n])).Decode(&request); err != nil {
				continue
			}
			answer := echo{Server: name, Client: unmap(from), Address: local, ID: request.ID, Bytes: int64(n), Sum: sum(buffer[:n])}
			reply, err := fill(answer, request.Reply)
			if err != nil {
				continue
			}
			_, _ = conn.WriteToUDPAddrPort(reply, from)
		}
	}()
	return &server{address: local, close: conn.Close}, nil
}

// fill encodes a value and fills it up to size with blanks, which JSON
// ignores.
func fill(value any, size int) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	if len(data) < size {
		data = append(data, bytes.Repeat([]byte{' '}, size-len(data))...)
	}
	return data, nil
}

// payload is n bytes, the same at every call.
func payload(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte([]byte("a payload known to either of us!"))), n)
}

func sum(data []byte) string {
	hash := sha256.Sum256(data)
	return hex.EncodeToString(hash[:])
}

func addrPortOf(text string) netip.AddrPort {
	address, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.AddrPort{}
	}
	return unmap(address)
}

func unmap(address netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(address.Addr().Unmap().WithZone(""), address.Port())
}
