// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Prober holds the echo servers and client sockets of one process.
type Prober struct {
	name string

	mu       sync.Mutex
	servers  map[Listen]*server
	sessions map[int]*session
	last     int
	load     *runningLoad
}

// NewProber makes a prober; name is what its echo servers call themselves.
func NewProber(name string) *Prober {
	return &Prober{name: name, servers: map[Listen]*server{}, sessions: map[int]*session{}}
}

// once is the request of the call of that name.
type onceRequest struct {
	Dial     Dial
	Exchange Exchange
	Count    int
}

// Serve answers calls on a listener until it is closed.
func (p *Prober) Serve(control net.Listener) error {
	mux := http.NewServeMux()
	handle(mux, "listen", p.listen)
	handle(mux, "unlisten", p.unlisten)
	handle(mux, "open", p.open)
	handle(mux, "exchange", p.exchange)
	handle(mux, "close", p.close)
	handle(mux, "load-start", p.loadStart)
	handle(mux, "load-backend", p.loadBackend)
	handle(mux, "load-report", p.loadReport)
	handle(mux, "load-stop", p.loadStop)
	handle(mux, "once", func(request onceRequest) ([]Answer, error) {
		answers := make([]Answer, 0, request.Count)
		for range request.Count {
			answers = append(answers, once(request.Dial, request.Exchange))
		}
		return answers, nil
	})
	return http.Serve(control, mux)
}

func handle[Request, Response any](mux *http.ServeMux, call string, do func(Request) (Response, error)) {
	mux.HandleFunc("POST /"+call, func(w http.ResponseWriter, r *http.Request) {
		var request Request
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		response, err := do(request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		// The caller is gone if this fails.
		_ = json.NewEncoder(w).Encode(response)
	})
}

// Listen starts an echo server and tells its address.
func (p *Prober) listen(request Listen) (netip.AddrPort, error) {
	serve := serveTCP
	if request.Network == UDP {
		serve = serveUDP
	}
	server, err := serve(p.name, request.Address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.servers[Listen{request.Network, server.address}] = server
	return server.address, nil
}

func (p *Prober) unlisten(request Listen) (struct{}, error) {
	p.mu.Lock()
	server := p.servers[request]
	delete(p.servers, request)
	p.mu.Unlock()
	if server == nil {
		return struct{}{}, fmt.Errorf("no %s server on %s", request.Network, request.Address)
	}
	return struct{}{}, server.close()
}

func (p *Prober) open(request Dial) (Opened, error) {
	session, opened := openSession(request)
	if session != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last++
		p.sessions[p.last] = session
		opened.Session = p.last
	}
	return opened, nil
}

func (p *Prober) exchange(request Exchange) (Answer, error) {
	p.mu.Lock()
	session := p.sessions[request.Session]
	p.mu.Unlock()
	if session == nil {
		return Answer{}, fmt.Errorf("no session %d", request.Session)
	}
	return session.exchange(request), nil
}

func (p *Prober) close(id int) (struct{}, error) {
	p.mu.Lock()
	session := p.sessions[id]
	delete(p.sessions, id)
	p.mu.Unlock()
	if session == nil {
		return struct{}{}, errors.New("no such session")
	}
	return struct{}{}, session.close()
}
