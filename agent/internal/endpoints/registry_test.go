// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func one(name, sandbox string) Endpoint {
	return Endpoint{
		Attachment: Attachment{Network: "pods", Container: sandbox, Interface: "eth0"}, Namespace: "default", Name: name, UID: "uid-" + name,
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd01::5")}, Device: "veth1", Index: 12,
		NetNS: "/run/netns/x", Cookie: 1 << 60, Added: time.Unix(1700000000, 5).UTC(), Replaces: "before",
	}
}

var same = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRegistry keeps what was told over processes of one boot, and leaves nothing.
func TestRegistry(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "endpoints")
	open := func(boot string, failures int) *Registry {
		t.Helper()
		r, errs := Open(dir, boot)
		if len(errs) != failures {
			t.Fatalf("errors %v, want %d", errs, failures)
		}
		return r
	}
	r := open("boot1", 0)
	a, b := one("a", "s1"), one("b", "s2")
	b.Added = a.Added.Add(-time.Second)
	for _, e := range []Endpoint{a, b} {
		must(t, r.Put(e))
	}
	must(t, r.End(Ended{Key: "default/c", UID: "uid-c", Addresses: a.Addresses}))
	want := Known{Endpoints: []Endpoint{b, a}, Ended: []Ended{{Key: "default/c", UID: "uid-c", Addresses: a.Addresses}}}
	if diff := cmp.Diff(want, r.Known(), same); diff != "" {
		t.Fatal(diff)
	}
	must(t, os.WriteFile(filepath.Join(dir, "x.json.new"), []byte("half"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "y.json"), []byte("{"), 0o600))
	r = open("boot1", 1) // the broken one is named, and removed
	if diff := cmp.Diff(want, r.Known(), same); diff != "" {
		t.Fatal(diff)
	}
	r = open("boot1", 0)
	// The pod comes again: it has not ended.
	c := one("c", "s3")
	must(t, r.Put(c))
	if len(r.Known().Ended) != 0 {
		t.Fatalf("%v", r.Known().Ended)
	}
	must(t, r.End(Ended{Key: "default/d", UID: "d"}))
	must(t, r.ForgetEnded(func(e *Ended) bool { return e.UID != "d" }))
	for _, e := range []Endpoint{a, b, c} {
		must(t, r.Remove(e.Attachment))
	}
	must(t, r.Remove(a.Attachment))
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Fatalf("the directory is left: %v", err)
	}
	must(t, r.Put(a))
	if known := open("boot2", 0).Known(); len(known.Endpoints) != 0 {
		t.Fatalf("another boot knows %v", known)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Fatalf("files of another boot are left: %v", list)
	}
}
