// SPDX-License-Identifier: Apache-2.0

package backends

import (
	"fmt"
	"testing"
	"unique"

	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/calc/model"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func TestChunkCount(t *testing.T) {
	t.Parallel()
	for usable, want := range map[int]int{
		0: 0, 1: 1, 64: 1, 65: 2, 128: 2, 129: 4, 256: 4, 257: 8, 5000: 128, 250_000: 4096,
	} {
		if got := (&Group{usable: usable}).Chunks(); got != want {
			t.Errorf("%d backends: %d chunks, want %d", usable, got, want)
		}
	}
}

func noZone(unique.Handle[string]) string { return "" }

func testSlice(t *testing.T, count int, edit func(i int, e *model.Endpoint)) *Slice {
	t.Helper()
	object := &model.EndpointSlice{
		Namespace: "ns", Name: "s", AddressType: "IPv4",
		Labels: map[string]string{model.LabelServiceName: "x"},
		Ports:  []model.EndpointPort{{Name: "web", Port: new(int32)}},
	}
	*object.Ports[0].Port = 8080
	for i := range count {
		e := model.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i>>8, i&255)}, NodeName: fmt.Sprint("n", i%7)}
		if edit != nil {
			edit(i, &e)
		}
		object.Endpoints = append(object.Endpoints, e)
	}
	slice, problems := Parse(object)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return slice
}

// TestChangeCostsItsChunk: whatever the size of the service, one backend's
// change builds one chunk.
func TestChangeCostsItsChunk(t *testing.T) {
	t.Parallel()
	const count = 5000
	group := &Group{Namespace: "ns", Name: "x"}
	before := testSlice(t, count, nil)
	group.Replace(nil, before)
	built, backends := map[int]int{}, 0
	put := func(chunk int, content *dataplanev1.BackendSlice) {
		built[chunk]++
		backends += len(content.GetBackends())
	}
	if chunks := group.Build(noZone, put); chunks != 128 || len(built) != 128 || backends != count {
		t.Fatalf("%d chunks, %d built, %d backends", chunks, len(built), backends)
	}
	clear(built)
	notReady := false
	after := testSlice(t, count, func(i int, e *model.Endpoint) {
		if i == 1234 {
			e.NodeName = "elsewhere"
		}
		e.Serving = nil
	})
	group.Replace(before, after)
	group.Build(noZone, put)
	if len(built) != 1 {
		t.Errorf("one endpoint's move built %d chunks", len(built))
	}
	clear(built)
	// Two that are not usable leave the number of chunks as it is.
	last := testSlice(t, count, func(i int, e *model.Endpoint) {
		if i == 1234 {
			e.NodeName = "elsewhere"
		}
		if i == 7 || i == 4000 {
			e.Ready = &notReady
		}
	})
	group.Replace(after, last)
	group.Build(noZone, put)
	if len(built) < 1 || len(built) > 2 {
		t.Errorf("two endpoints' ends built %d chunks", len(built))
	}
	clear(built)
	group.Build(noZone, put)
	if len(built) != 0 {
		t.Errorf("nothing changed and %d chunks were built", len(built))
	}
}

// TestChunksAreEven guards against a hash that lumps neighbouring addresses.
func TestChunksAreEven(t *testing.T) {
	t.Parallel()
	group := &Group{}
	group.Replace(nil, testSlice(t, 16384, nil))
	greatest := 0
	group.Build(noZone, func(_ int, content *dataplanev1.BackendSlice) {
		greatest = max(greatest, len(content.GetBackends()))
	})
	if greatest > 2*chunkTarget {
		t.Errorf("a chunk has %d backends where the mean is %d", greatest, chunkTarget)
	}
}

// TestZoneIndex takes slices out in an order in which places move.
func TestZoneIndex(t *testing.T) {
	t.Parallel()
	index := NewZoneIndex()
	var all []*Slice
	for range 20 {
		slice := testSlice(t, 10, nil)
		(&Group{}).Replace(nil, slice)
		index.Add(slice)
		all = append(all, slice)
	}
	node := unique.Make("n3")
	for len(all) > 0 {
		place := (len(all) * 7) % len(all)
		if len(all)%3 == 0 {
			place = len(all) - 1
		}
		index.Remove(all[place])
		all = append(all[:place], all[place+1:]...)
		found := map[*Group]bool{}
		index.MarkNode(node, func(group *Group) { found[group] = true })
		if len(found) != len(all) {
			t.Fatalf("%d slices found, %d are there", len(found), len(all))
		}
	}
	if len(index.slices) != 0 {
		t.Errorf("%d nodes are left in the index", len(index.slices))
	}
}

// TestEveryPlace takes each endpoint of a slice out and puts it back; what is
// built piece by piece must be what is built in one go.
func TestEveryPlace(t *testing.T) {
	t.Parallel()
	const count = 200
	group := &Group{}
	held := map[int]*dataplanev1.BackendSlice{}
	put := func(chunk int, content *dataplanev1.BackendSlice) { held[chunk] = content }
	var before *Slice
	step := func(label string, after *Slice) {
		t.Helper()
		group.Replace(before, after)
		group.Build(noZone, put)
		before = after
		whole := &Group{}
		copied := *after
		whole.Replace(nil, &copied)
		whole.Build(noZone, func(chunk int, content *dataplanev1.BackendSlice) {
			if !proto.Equal(held[chunk], content) {
				t.Fatalf("%s: chunk %d is out of date", label, chunk)
			}
		})
	}
	full := func() *Slice { return testSlice(t, count, nil) }
	step("first", full())
	for out := range count {
		// Its place is taken by an address of another hash.
		step(fmt.Sprint("without ", out), testSlice(t, count, func(i int, e *model.Endpoint) {
			if i == out {
				e.Addresses = []string{"10.9.9.9"}
			}
		}))
		step(fmt.Sprint("with ", out), full())
	}
	for one := range count {
		step(fmt.Sprint("only without ", one), withoutRecord(full(), one))
		step(fmt.Sprint("again with ", one), full())
	}
}

func withoutRecord(slice *Slice, place int) *Slice {
	slice.records = append(slice.records[:place:place], slice.records[place+1:]...)
	slice.usable--
	return slice
}
