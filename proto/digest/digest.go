// SPDX-License-Identifier: Apache-2.0

// Package digest condenses a set of resources into a few numbers that tell,
// bucket by bucket, whether two holders have the same set. A calculator and an
// agent compare digests when a stream opens; only buckets that differ are
// looked at name by name, so that resuming costs what changed.
//
// A resource falls into a bucket by a hash of its name. The digest of a bucket
// is the exclusive or, over its resources, of a hash of name and version.
// Exclusive or makes the digest independent of order, cheap to keep up to date
// and additive: the digest of a union of disjoint sets is the exclusive or of
// theirs.
package digest

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Count is the number of buckets that calculators and agents of this version
// use. It is a power of two.
const Count = 256

// nameHash hashes a type byte and a key, followed by tail.
func nameHash(name *dataplanev1.ResourceName, tail ...byte) uint64 {
	key := name.GetKey()
	// Keys are namespace/name pairs: nearly all fit the array, which then
	// stays on the stack.
	var array [192]byte
	buffer := append(array[:0], byte(name.GetType()))
	buffer = append(buffer, key...)
	buffer = append(buffer, tail...)
	return xxhash.Sum64(buffer)
}

// Bucket returns the index of the bucket, 0 to Count-1, that a name falls into.
func Bucket(name *dataplanev1.ResourceName) int {
	return int(nameHash(name) % Count)
}

// ResourceDigest returns what a resource of this name and version contributes
// to its bucket.
func ResourceDigest(name *dataplanev1.ResourceName, version uint64) uint64 {
	var tail [9]byte // 0x00 keeps a key's end apart from the version's bytes
	binary.LittleEndian.PutUint64(tail[1:], version)
	return nameHash(name, tail[:]...)
}

// Buckets is the digest of a set of resources. The zero value is the digest of
// the empty set.
type Buckets [Count]uint64

// Add notes that the resource is in the set. Adding what is there already
// corrupts the digest; to replace a version, remove the old one first.
func (b *Buckets) Add(name *dataplanev1.ResourceName, version uint64) {
	b[Bucket(name)] ^= ResourceDigest(name, version)
}

// Remove notes that the resource, which was in the set with this version, is
// no longer.
func (b *Buckets) Remove(name *dataplanev1.ResourceName, version uint64) {
	// Exclusive or is its own inverse; the method exists for its name.
	b.Add(name, version)
}

// XOR joins the digest of a disjoint set into b.
func (b *Buckets) XOR(other *Buckets) {
	for i := range b {
		b[i] ^= other[i]
	}
}

// Sum returns the exclusive or of all buckets, the digest of the whole set as
// a Commit states it. The empty set has 0.
func (b *Buckets) Sum() uint64 {
	var sum uint64
	for _, bucket := range b {
		sum ^= bucket
	}
	return sum
}

// Digests returns a copy of the buckets, in the form of Hello.bucket_digests.
func (b *Buckets) Digests() []uint64 {
	digests := make([]uint64, Count)
	copy(digests, b[:])
	return digests
}

// Differing returns the indexes, ascending, of the buckets in which the set
// differs from the set that digests was made of. An absent (empty) digests is
// the empty set. A peer may use another power of two as its count: buckets are
// then compared folded to the smaller count, and every bucket that folds onto
// a differing one counts as differing. ok is false if the count is no power of
// two.
func (b *Buckets) Differing(digests []uint64) (differing []uint32, ok bool) {
	count := len(digests)
	if count == 0 {
		digests, count = make([]uint64, Count), Count
	}
	if count&(count-1) != 0 {
		return nil, false
	}
	small := min(count, Count)
	folded := make([]uint64, small)
	for i, digest := range digests {
		folded[i%small] ^= digest
	}
	for i, digest := range b {
		folded[i%small] ^= digest
	}
	for i := range b {
		if folded[i%small] != 0 {
			differing = append(differing, uint32(i))
		}
	}
	return differing, true
}
