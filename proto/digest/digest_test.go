// SPDX-License-Identifier: Apache-2.0

package digest_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"

	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func name(kind dataplanev1.ResourceType, key string) *dataplanev1.ResourceName {
	return &dataplanev1.ResourceName{Type: kind, Key: key}
}

func service(i int) *dataplanev1.ResourceName {
	return name(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, fmt.Sprintf("default/service-%d", i))
}

// The hash is part of the protocol: both sides of every version must agree.
func TestHashIsTheDocumentedOne(t *testing.T) {
	n := name(dataplanev1.ResourceType_RESOURCE_TYPE_NODE, "node-1")
	encoded := append([]byte{2}, "node-1"...)
	if got, want := digest.Bucket(n), int(xxhash.Sum64(encoded)%256); got != want {
		t.Errorf("Bucket = %d, want %d", got, want)
	}
	encoded = append(encoded, 0)
	encoded = binary.LittleEndian.AppendUint64(encoded, 0x0102030405060708)
	if got, want := digest.ResourceDigest(n, 0x0102030405060708), xxhash.Sum64(encoded); got != want {
		t.Errorf("ResourceDigest = %#x, want %#x", got, want)
	}
	// Fixed numbers, so that an exchanged hash function is noticed too.
	if got, want := digest.Bucket(n), 179; got != want {
		t.Errorf("Bucket = %d, want the constant %d", got, want)
	}
	if got, want := digest.ResourceDigest(n, 7), uint64(0xdd9427735ff81936); got != want {
		t.Errorf("ResourceDigest = %#x, want the constant %#x", got, want)
	}
}

func TestTypeIsPartOfTheName(t *testing.T) {
	node := name(dataplanev1.ResourceType_RESOURCE_TYPE_NODE, "same")
	config := name(dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG, "same")
	if digest.ResourceDigest(node, 1) == digest.ResourceDigest(config, 1) {
		t.Error("resources of two types with one key have one digest")
	}
}

func TestBucketsIgnoreOrderAndForgetWhatIsRemoved(t *testing.T) {
	var forward, backward digest.Buckets
	for i := range 1000 {
		forward.Add(service(i), uint64(i))
	}
	for i := 999; i >= 0; i-- {
		backward.Add(service(i), uint64(i))
	}
	if forward != backward {
		t.Error("the digest depends on the order of adding")
	}
	for i := range 1000 {
		forward.Remove(service(i), uint64(i))
	}
	if forward != (digest.Buckets{}) || forward.Sum() != 0 {
		t.Error("something is left after everything was removed")
	}
}

func TestXORIsTheUnion(t *testing.T) {
	var left, right, both digest.Buckets
	for i := range 500 {
		left.Add(service(i), 1)
		both.Add(service(i), 1)
	}
	for i := 500; i < 900; i++ {
		right.Add(service(i), 1)
		both.Add(service(i), 1)
	}
	sum := left.Sum() ^ right.Sum()
	left.XOR(&right)
	if left != both {
		t.Error("XOR of two sets differs from the digest of their union")
	}
	if both.Sum() != sum {
		t.Error("Sum of the union differs from the exclusive or of the sums")
	}
}

func TestBucketsSpread(t *testing.T) {
	var fill [digest.Count]int
	for i := range 10 * digest.Count {
		fill[digest.Bucket(service(i))]++
	}
	if most := slices.Max(fill[:]); most > 30 {
		t.Errorf("one bucket holds %d resources where 10 are expected", most)
	}
}

func TestDiffering(t *testing.T) {
	var ours, theirs digest.Buckets
	for i := range 1000 {
		ours.Add(service(i), 1)
		theirs.Add(service(i), 1)
	}
	if differing, ok := ours.Differing(theirs.Digests()); !ok || len(differing) != 0 {
		t.Errorf("equal sets differ in %v, %v", differing, ok)
	}
	theirs.Remove(service(5), 1)
	theirs.Add(service(5), 2)
	want := []uint32{uint32(digest.Bucket(service(5)))}
	if differing, ok := ours.Differing(theirs.Digests()); !ok || !slices.Equal(differing, want) {
		t.Errorf("differing buckets %v, %v, want %v", differing, ok, want)
	}
	if _, ok := ours.Differing(make([]uint64, 255)); ok {
		t.Error("255 buckets were accepted")
	}
	var empty digest.Buckets
	if differing, ok := empty.Differing(nil); !ok || len(differing) != 0 {
		t.Errorf("two empty sets differ in %v, %v", differing, ok)
	}
	if differing, ok := ours.Differing(nil); !ok || len(differing) < digest.Count/2 {
		t.Errorf("a full and an empty set differ in only %d buckets, %v", len(differing), ok)
	}
}

// A peer with more or fewer buckets still gets exact answers, only coarser.
func TestDifferingFoldsOtherCounts(t *testing.T) {
	for _, count := range []int{1, 16, 1024} {
		var ours digest.Buckets
		theirs := make([]uint64, count)
		for i := range 1000 {
			n := service(i)
			ours.Add(n, 1)
			theirs[bucketOf(n, count)] ^= digest.ResourceDigest(n, 1)
		}
		if differing, ok := ours.Differing(theirs); !ok || len(differing) != 0 {
			t.Errorf("count %d: equal sets differ in %v, %v", count, differing, ok)
		}
		n := service(5)
		ours.Remove(n, 1)
		differing, ok := ours.Differing(theirs)
		if !ok || !slices.Contains(differing, uint32(digest.Bucket(n))) {
			t.Errorf("count %d: bucket %d is missing from %v", count, digest.Bucket(n), differing)
		}
		if want := digest.Count / min(count, digest.Count); len(differing) != want {
			t.Errorf("count %d: %d buckets differ, want %d", count, len(differing), want)
		}
	}
}

func bucketOf(n *dataplanev1.ResourceName, count int) int {
	encoded := append([]byte{byte(n.GetType())}, n.GetKey()...)
	return int(xxhash.Sum64(encoded) % uint64(count))
}

func BenchmarkAdd(b *testing.B) {
	var buckets digest.Buckets
	n := service(12345)
	b.ReportAllocs()
	for i := range b.N {
		buckets.Add(n, uint64(i))
	}
}
