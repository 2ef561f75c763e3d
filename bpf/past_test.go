// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
)

// beforeLocking does something else each time that somebody is about to hold it.
type beforeLocking struct {
	sync.Mutex
	do func()
}

func (l *beforeLocking) Lock() {
	l.do()
	l.Mutex.Lock()
}

// TestFlowsGoToTheCurrentMap exchanges the map that flows are converted to in
// the middle of it, and has a flow of that key stay in the other, draining one.
func TestFlowsGoToTheCurrentMap(t *testing.T) {
	d := open(t, Options{SocketsOnly: true})
	key, _, _ := layout.NewCtKey[layout.V4](netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("10.0.0.2:80"), layout.ProtoTCP)
	entry := layout.CtEntryV4{Kind: layout.CtRecord, State: layout.CtEstablished, Nonce: 7, Main: key,
		Expires: CoarseNow() + uint64(time.Hour)}
	old, err := ebpf.NewMap(d.V4.Established.spec)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	other := entry
	other.Nonce = 8
	if err := errors.Join(old.Put(&key, &entry), d.V4.Embryonic.Current().Put(&key, &other)); err != nil {
		t.Fatal(err)
	}
	c := flowConversion[layout.V4]{old: old, convert: func(k, v []byte) ([]byte, []byte) { return k, v },
		to: d.V4.Established, other: d.V4.Embryonic}
	c.writing = &beforeLocking{do: func() {
		if d.V4.Established.Draining() != nil {
			return
		}
		for _, g := range []*Generations{d.V4.Established, d.V4.Embryonic} {
			if err := g.Grow(2 * g.Current().MaxEntries()); err != nil {
				t.Fatal(err)
			}
		}
	}}
	if err := c.run(); err != nil || c.moved != 1 {
		t.Fatalf("%d flows moved, %v", c.moved, err)
	}
	var have layout.CtEntryV4
	if err := d.V4.Established.Current().Lookup(&key, &have); err != nil || have != entry {
		t.Errorf("in the current map: %+v, %v", have, err)
	}
	if err := d.V4.Embryonic.Draining().Lookup(&key, &have); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("another flow's entry is still in the draining map: %v", err)
	}
}

// TestPastMapThatCannotBeOpened has something else stand at the pin of a map of
// the past: the past stays, for what is in that map may be all that knows a flow.
func TestPastMapThatCannotBeOpened(t *testing.T) {
	path := pinPath(t)
	needKernel(t)
	past := filepath.Join(pastPath(path), "maps")
	if err := os.MkdirAll(past, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := Open(testSizes(Options{PinPath: path, SocketsOnly: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	clear(d.past.layouts) // none goes on as the present one
	for _, name := range []string{"established_v4-current", "connected_v6", "frontends_v4"} {
		if err := os.Mkdir(filepath.Join(past, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if s, err := d.Succeed(new(sync.Mutex)); err == nil || s.Done {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		if found, _ := d.Past(); !found {
			t.Fatalf("%s: the past is gone", name)
		}
		if err := os.Remove(filepath.Join(past, name)); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := d.Succeed(new(sync.Mutex)); err != nil || !s.Done {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestRetiringBesideAPast starts where pins were being set aside although an
// earlier past had not been removed whole.
func TestRetiringBesideAPast(t *testing.T) {
	path := pinPath(t)
	needKernel(t)
	if err := makePinDirs(path); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(pastName, "maps", "left"), retiringName} {
		if err := os.MkdirAll(filepath.Join(path, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Open(testSizes(Options{PinPath: path, SocketsOnly: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if exists(filepath.Join(path, retiringName)) || exists(filepath.Join(path, pastName, "maps", "left")) {
		t.Error("the earlier past is still there")
	}
}
