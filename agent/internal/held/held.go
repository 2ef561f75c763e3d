// SPDX-License-Identifier: Apache-2.0

// Package held keeps the resources that calculators gave this node. Resources
// are kept as the bytes they travel in and decoded on use: an agent holds the
// whole cluster's services but looks at few of them at a time, and bytes take a
// tenth of what decoded messages take.
package held

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/millrace-project/millrace/proto/digest"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Name identifies a resource by type and natural key. Unlike the protobuf
// message it can be compared and used as a map key.
type Name struct {
	// Type is the resource's type; types this agent does not know are kept too.
	Type dataplanev1.ResourceType
	// Key is the natural key within the type.
	Key string
}

// NameOf returns the Name that a message carries.
func NameOf(name *dataplanev1.ResourceName) Name {
	return Name{Type: name.GetType(), Key: name.GetKey()}
}

// Proto returns the name as a message.
func (n Name) Proto() *dataplanev1.ResourceName {
	return &dataplanev1.ResourceName{Type: n.Type, Key: n.Key}
}

// String returns the name for people, "SERVICE shop/cart".
func (n Name) String() string {
	return TypeName(n.Type) + " " + n.Key
}

// Compare orders names by type, then key.
func (n Name) Compare(other Name) int {
	return cmp.Or(cmp.Compare(n.Type, other.Type), cmp.Compare(n.Key, other.Key))
}

// TypeName returns a type's name without the enum's prefix, or its number if
// this agent does not know it.
func TypeName(t dataplanev1.ResourceType) string {
	const prefix = "RESOURCE_TYPE_"
	if name, ok := dataplanev1.ResourceType_name[int32(t)]; ok {
		return name[len(prefix):]
	}
	return fmt.Sprintf("type %d", int32(t))
}

// Entry is a held resource: its version and the bytes of its Resource message.
type Entry struct {
	Version uint64
	Data    []byte
}

// Batch is a change of what is held: a resource is in Upserts or in Removals,
// never in both. It leads from one whole state of a calculator to another.
type Batch struct {
	Upserts  map[Name]Entry
	Removals map[Name]struct{}
	// Meta tells which state of which cluster the batch leads to.
	Meta Meta
}

// Meta describes how far the holding has come.
type Meta struct {
	// Epoch is the identity of the cluster and its restore counter.
	Epoch string
	// Position is the highest resource version included, by kind.
	Position map[string]uint64
	// InSync tells that nothing was missing once.
	InSync bool
}

// NewBatch returns an empty batch.
func NewBatch() *Batch {
	return &Batch{Upserts: map[Name]Entry{}, Removals: map[Name]struct{}{}}
}

// Upsert notes that the resource is to be added or replaced.
func (b *Batch) Upsert(name Name, entry Entry) {
	delete(b.Removals, name)
	b.Upserts[name] = entry
}

// Remove notes that the resource is to be removed.
func (b *Batch) Remove(name Name) {
	delete(b.Upserts, name)
	b.Removals[name] = struct{}{}
}

// Empty tells that the batch changes no resource.
func (b *Batch) Empty() bool { return len(b.Upserts) == 0 && len(b.Removals) == 0 }

// Merge lets next, which comes after b, take effect in b.
func (b *Batch) Merge(next *Batch) {
	for name, entry := range next.Upserts {
		b.Upsert(name, entry)
	}
	for name := range next.Removals {
		b.Remove(name)
	}
	b.Meta = next.Meta
}

// Names returns the names of everything the batch touches.
func (b *Batch) Names() []Name {
	names := make([]Name, 0, len(b.Upserts)+len(b.Removals))
	for name := range b.Upserts {
		names = append(names, name)
	}
	for name := range b.Removals {
		names = append(names, name)
	}
	slices.SortFunc(names, Name.Compare)
	return names
}

// Store is what the node holds. It is safe for concurrent use; one goroutine
// applies batches.
type Store struct {
	mu      sync.RWMutex
	types   map[dataplanev1.ResourceType]map[string]Entry
	buckets digest.Buckets
	bytes   int64
	meta    Meta
}

// New returns an empty store.
func New() *Store {
	return &Store{types: map[dataplanev1.ResourceType]map[string]Entry{}}
}

// entryOverhead is what a record of the log needs beside key and data.
const entryOverhead = 16

// Apply lets a batch take effect.
func (s *Store) Apply(b *Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range b.Removals {
		s.remove(name)
	}
	for name, entry := range b.Upserts {
		s.remove(name)
		byKey := s.types[name.Type]
		if byKey == nil {
			byKey = map[string]Entry{}
			s.types[name.Type] = byKey
		}
		byKey[name.Key] = entry
		s.buckets.Add(name.Proto(), entry.Version)
		s.bytes += int64(len(name.Key) + len(entry.Data) + entryOverhead)
	}
	s.meta = b.Meta
}

func (s *Store) remove(name Name) {
	old, ok := s.types[name.Type][name.Key]
	if !ok {
		return
	}
	s.buckets.Remove(name.Proto(), old.Version)
	s.bytes -= int64(len(name.Key) + len(old.Data) + entryOverhead)
	delete(s.types[name.Type], name.Key)
}

// Meta returns how far the holding has come.
func (s *Store) Meta() Meta {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta
}

// Digests returns the bucket digests of everything held.
func (s *Store) Digests() digest.Buckets {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.buckets
}

// Bytes estimates how long a log of everything held is.
func (s *Store) Bytes() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bytes
}

// Entry returns a resource as it is held.
func (s *Store) Entry(name Name) (Entry, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	entry, ok := s.types[name.Type][name.Key]
	return entry, ok
}

// Get decodes a resource. It returns nil without an error if it is not held.
func (s *Store) Get(name Name) (*dataplanev1.Resource, error) {
	entry, ok := s.Entry(name)
	if !ok {
		return nil, nil
	}
	return Decode(name, entry)
}

// Decode decodes a held entry.
func Decode(name Name, entry Entry) (*dataplanev1.Resource, error) {
	resource := new(dataplanev1.Resource)
	if err := proto.Unmarshal(entry.Data, resource); err != nil {
		return nil, fmt.Errorf("decode %s: %w", name, err)
	}
	return resource, nil
}

// Keys returns the keys of a type, sorted.
func (s *Store) Keys(t dataplanev1.ResourceType) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	keys := make([]string, 0, len(s.types[t]))
	for key := range s.types[t] {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Named is a resource with its name.
type Named struct {
	Name  Name
	Entry Entry
}

// All returns everything that is held, in no order.
func (s *Store) All() []Named {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := 0
	for _, byKey := range s.types {
		n += len(byKey)
	}
	all := make([]Named, 0, n)
	for t, byKey := range s.types {
		for key, entry := range byKey {
			all = append(all, Named{Name{Type: t, Key: key}, entry})
		}
	}
	return all
}

// Names returns everything that is held, sorted.
func (s *Store) Names() []Name {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []Name
	for t, byKey := range s.types {
		for key := range byKey {
			names = append(names, Name{Type: t, Key: key})
		}
	}
	slices.SortFunc(names, Name.Compare)
	return names
}

// Counts returns how many resources are held, by type.
func (s *Store) Counts() map[dataplanev1.ResourceType]int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	counts := make(map[dataplanev1.ResourceType]int, len(s.types))
	for t, byKey := range s.types {
		if len(byKey) > 0 {
			counts[t] = len(byKey)
		}
	}
	return counts
}

// Buckets returns names and versions of what falls into each of the wanted
// buckets out of count, in one pass over everything held.
func (s *Store) Buckets(wanted []uint32, count uint32) map[uint32][]*dataplanev1.HeldResource {
	result := make(map[uint32][]*dataplanev1.HeldResource, len(wanted))
	for _, bucket := range wanted {
		result[bucket] = nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for t, byKey := range s.types {
		for key, entry := range byKey {
			name := &dataplanev1.ResourceName{Type: t, Key: key}
			// count is a power of two no larger than digest.Count, so folding
			// the bucket folds the hash.
			bucket := uint32(digest.Bucket(name)) % count
			if _, ok := result[bucket]; ok {
				result[bucket] = append(result[bucket], &dataplanev1.HeldResource{Name: name, Version: entry.Version})
			}
		}
	}
	return result
}

// FromProto makes an entry of a resource as it came from the wire, unknown
// fields included.
func FromProto(resource *dataplanev1.Resource) (Name, Entry, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(resource)
	if err != nil {
		return Name{}, Entry{}, fmt.Errorf("encode %s: %w", NameOf(resource.GetName()), err)
	}
	return NameOf(resource.GetName()), Entry{Version: resource.GetVersion(), Data: data}, nil
}
