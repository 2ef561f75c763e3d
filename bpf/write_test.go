// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/bpf/layout"
)

func TestBatches(t *testing.T) {
	d := open(t, Options{SocketsOnly: true, MaxFrontends: 3 * batchSize, MaxBackends: 3 * batchSize})
	const n = 2*batchSize + 17
	keys, values, elems := make([]layout.FrontendKeyV6, n), make([]layout.Frontend, n), make([]layout.BackendV6, n)
	for i := range n {
		keys[i] = layout.FrontendKeyV6{Addr: layout.V6{0xfd, 14: byte(i >> 8), 15: byte(i)}, Port: layout.Port(80), Proto: 6}
		values[i].ServiceID = uint32(i + 1)
		elems[i] = layout.BackendV6{Addr: keys[i].Addr, Port: layout.Port(uint16(i))}
	}
	if err := UpdateFrontends(d.V6, keys, values); err != nil {
		t.Fatal(err)
	}
	seen := map[layout.FrontendKeyV6]uint32{}
	each := func(k layout.FrontendKeyV6, v layout.Frontend) bool { seen[k] = v.ServiceID; return true }
	if err := Each(d.V6.Frontends, each); err != nil {
		t.Fatal(err)
	}
	for i, k := range keys {
		if seen[k] != uint32(i+1) {
			t.Fatalf("%s is service %d", k, seen[k])
		}
	}
	if len(seen) != n {
		t.Errorf("%d frontends", len(seen))
	}
	// Ones that are not there stop no batch.
	if err := d.V6.Frontends.Delete(&keys[5]); err != nil {
		t.Fatal(err)
	}
	if err := DeleteFrontends(d.V6, keys[:n-1]); err != nil {
		t.Fatal(err)
	}
	clear(seen)
	if err := Each(d.V6.Frontends, each); err != nil || len(seen) != 1 || seen[keys[n-1]] != n {
		t.Errorf("left: %d, %v", len(seen), err)
	}

	if err := WriteBackends(d.V6, 3, elems); err != nil {
		t.Fatal(err)
	}
	got, err := ReadBackends[layout.V6](d.V6, 3, n)
	if err != nil {
		t.Fatal(err)
	}
	for i := range elems {
		if got[i] != elems[i] {
			t.Fatalf("backend %d: wrote %s, read %s", i, elems[i], got[i])
		}
	}
	if err := WriteBackends(d.V6, d.V6.Backends.MaxEntries()-1, elems[:2]); err == nil {
		t.Error("wrote beyond the end")
	}
}

// While a service is written over and over, every connect reaches a backend it
// had before a write or after it, and none reaches a mixture of two.
func TestConnectWhileWriting(t *testing.T) {
	for _, c := range []struct {
		name, frontend string
		family         int
		backends       [2]string
	}{
		{"v4", "10.96.0.1:80", unix.AF_INET, [2]string{"127.0.1.1:0", "127.0.2.2:0"}},
		{"v6", "[fd00:96::1]:80", unix.AF_INET6, [2]string{"[::1]:0", "[fd99::2]:0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newSockRig(t, Options{})
			if c.family == unix.AF_INET6 {
				addAddress(t, "fd99::2/128")
			}
			sets := [2]netip.AddrPort{tcpServer(t, c.backends[0]), tcpServer(t, c.backends[1])}
			front := netip.MustParseAddrPort(c.frontend)
			// Two ranges in turn. The one that was left holds, when it has
			// rested, backends that do not answer.
			write := func(i int) error {
				set := []netip.AddrPort{sets[i%2], sets[i%2], sets[i%2], sets[i%2]}
				r.next = uint32(i%2) * 4
				if front.Addr().Is4() {
					writeService[layout.V4](r, r.d.V4, layout.ProtoTCP, front, 0, 0, set)
				} else {
					writeService[layout.V6](r, r.d.V6, layout.ProtoTCP, front, 0, 0, set)
				}
				if err := r.d.Quiesce(); err != nil {
					return err
				}
				if front.Addr().Is4() {
					return WriteBackends(r.d.V4, uint32((i+1)%2)*4, make([]layout.BackendV4, 4))
				}
				return WriteBackends(r.d.V6, uint32((i+1)%2)*4, make([]layout.BackendV6, 4))
			}
			if err := write(0); err != nil {
				t.Fatal(err)
			}
			stopped := make(chan error, 1)
			go func() {
				for i := 1; i <= 150; i++ {
					if err := write(i); err != nil {
						stopped <- err
						return
					}
				}
				stopped <- nil
			}()
			for failed := 0; failed < 10; {
				select {
				case err := <-stopped:
					if err != nil {
						t.Error(err)
					}
					return
				default:
				}
				fd, err := unix.Socket(c.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := unix.Connect(fd, sockaddr(c.family, front)); err != nil {
					t.Errorf("connect: %v", err)
					failed++
				}
				unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
				unix.Close(fd)
			}
			<-stopped
		})
	}
}
