// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

// startProber serves a prober in this process.
func startProber(t *testing.T) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() { _ = NewProber("here").Serve(listener) }()
	return NewClient(path)
}

var loopbacks = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0")}

func TestExchange(t *testing.T) {
	client := startProber(t)
	for _, network := range []string{TCP, UDP} {
		for _, loopback := range loopbacks {
			address, err := client.Listen(network, loopback)
			if err != nil {
				t.Fatal(err)
			}
			dials := []Dial{{Network: network, Target: address}}
			if address.Addr().Is4() {
				dials = append(dials, Dial{Network: network, Target: address, Mapped: true})
			}
			for _, dial := range dials {
				opened, err := client.Open(dial)
				if err != nil || opened.Failure != None {
					t.Fatalf("%+v: %v %+v", dial, err, opened)
				}
				want := address
				if dial.Mapped {
					want = netip.AddrPortFrom(netip.AddrFrom16(address.Addr().As16()), address.Port())
				}
				if opened.Peer != want {
					t.Errorf("%+v: peer is %s, want %s", dial, opened.Peer, want)
				}
				for _, size := range []int{0, 1000, 60000} {
					answer, err := client.Exchange(Exchange{Session: opened.Session, Size: size, ReplySize: size})
					if err != nil || answer.Failure != None {
						t.Fatalf("%+v, %d bytes: %v %+v", dial, size, err, answer)
					}
					if answer.Server != "here" || answer.Address != address || answer.From != want ||
						answer.Client != unmap(opened.Local) {
						t.Errorf("%+v: got %+v", dial, answer)
					}
				}
				if err := client.Close(opened.Session); err != nil {
					t.Error(err)
				}
			}
			if err := client.Unlisten(network, address); err != nil {
				t.Error(err)
			}
			answer, err := client.Once(Dial{Network: network, Target: address}, Exchange{})
			if err != nil || answer.Failure != Refused {
				t.Errorf("%s after unlisten: %v %+v, want a refusal", network, err, answer)
			}
		}
	}
}

func TestUnconnected(t *testing.T) {
	client := startProber(t)
	opened, err := client.Open(Dial{Network: UDP})
	if err != nil || opened.Failure != None {
		t.Fatal(err, opened)
	}
	for range 3 {
		address, err := client.Listen(UDP, loopbacks[0])
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Exchange(Exchange{Session: opened.Session, Target: address})
		if err != nil || answer.Failure != None || answer.From != address {
			t.Errorf("got %v %+v, want an answer from %s", err, answer, address)
		}
	}
}

// TestFailures proves that what fails is told, and how: a prober that finds
// everything well would hide every fault.
func TestFailures(t *testing.T) {
	client := startProber(t)
	silent, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(loopbacks[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	deaf, err := net.Listen("tcp", loopbacks[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	cutter, err := net.Listen("tcp", loopbacks[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer cutter.Close()
	go func() {
		for {
			conn, err := cutter.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	for _, test := range []struct {
		name string
		dial Dial
		want Failure
	}{
		{"no answer by UDP", Dial{Network: UDP, Target: addrPortOf(silent.LocalAddr().String())}, Timeout},
		{"no answer by TCP", Dial{Network: TCP, Target: addrPortOf(deaf.Addr().String())}, Timeout},
		{"closed at once", Dial{Network: TCP, Target: addrPortOf(cutter.Addr().String())}, Reset},
		{"nobody there", Dial{Network: TCP, Target: netip.MustParseAddrPort("127.0.0.1:1")}, Refused},
	} {
		test.dial.Timeout = 100 * time.Millisecond
		answer, err := client.Once(test.dial, Exchange{})
		if err != nil || answer.Failure != test.want {
			t.Errorf("%s: %v %+v, want %s", test.name, err, answer, test.want)
		}
	}
	if _, err := client.Exchange(Exchange{Session: 99}); err == nil {
		t.Error("exchange on a session that is not open: no error")
	}
}
