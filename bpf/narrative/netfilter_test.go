// SPDX-License-Identifier: Apache-2.0

//go:build linux

package narrative

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/bpf/layout"
)

// rules are netfilter's as a CNI or an administrator may have them: drop what
// conntrack finds invalid, and translate the source of what leaves the cluster.
const rules = `
table inet narrative {
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state invalid counter drop
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.1.0.0/24 ip daddr 203.0.113.0/24 masquerade
		ip6 saddr fd10:1::/64 ip6 daddr 2001:db8:9::/64 masquerade
	}
}
`

// liberal is what the host's netfilter must be told when flows leave its sight:
// else it takes their end for something else, and the rule above drops it.
const liberal = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal"

// netfilter loads the rules until the test ends.
func netfilter(t *testing.T) {
	t.Helper()
	nft := func(input string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not installed: netfilter's rules cannot be loaded")
	}
	nft(rules)
	t.Cleanup(func() { nft("delete table inet narrative\n") })
	if err := os.WriteFile(liberal, []byte("1"), 0); errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no conntrack in the node's namespace: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// toTheEnd sends data, then its end, and reads until the other's end.
func (m *machine) toTheEnd(from netip.Addr, to netip.AddrPort, size int) error {
	c, err := m.dial(layout.ProtoTCP, from, to)
	if err != nil {
		return err
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		sent <- err
	}()
	n, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	if n != int64(size) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// The host's netfilter sees one consistent flow, and its end.
func TestTrafficWithNetfilter(t *testing.T) {
	each(t, tcp, func(t *testing.T, h *host) {
		a, b, beyond := h.wires(1500)
		netfilter(t)
		b.serve(h.proto, at(h.podB, 8080))
		beyond.serve(h.proto, at(h.podC, 8080))
		beyond.serve(h.proto, at(h.outside, 8080))
		h.service(at(h.vip, 80), layout.FrontendClusterIP, local(at(h.podB, 8080)))
		h.service(at(h.vip, 81), layout.FrontendClusterIP, remote(at(h.podC, 8080)))
		h.service(at(h.vip, 82), layout.FrontendClusterIP, remote(at(h.outside, 8080)))
		h.service(at(h.node, 30080), layout.FrontendNodePort, local(at(h.podB, 8080)))
		h.service(at(h.node, 30081), layout.FrontendNodePort, remote(at(h.podC, 8080)))
		for _, fast := range []bool{false, true} {
			if fast {
				h.fastPath()
			}
			for _, s := range []struct {
				name string
				m    *machine
				from netip.Addr
				to   netip.AddrPort
			}{
				{"pod to pod", a, h.podA, at(h.podB, 8080)},
				{"pod to service here", a, h.podA, at(h.vip, 80)},
				{"pod to service there", a, h.podA, at(h.vip, 81)},
				{"pod to service outside, masqueraded", a, h.podA, at(h.vip, 82)},
				{"pod to outside, masqueraded", a, h.podA, at(h.outside, 8080)},
				{"outside to node port here", beyond, h.outside, at(h.node, 30080)},
				{"outside to node port there", beyond, h.outside, at(h.node, 30081)},
			} {
				if err := s.m.toTheEnd(s.from, s.to, 4<<20); err != nil {
					t.Errorf("%s, fast path %v: %v", s.name, fast, err)
				}
			}
		}
	})
}
