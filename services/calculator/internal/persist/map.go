// SPDX-License-Identifier: Apache-2.0

// Package persist has a persistent map: one that is never changed, only
// succeeded. Making a successor costs what it changes, so that a snapshot of
// everything can be kept per revision, and readers need no locks.
package persist

import (
	"iter"

	"github.com/cespare/xxhash/v2"
)

const bucketCount = 256

// Map is an immutable map from strings. The zero value is an empty map. Values
// must not be changed once they are in a map.
type Map[V any] struct {
	// buckets is shared between successors until one of them differs; so is
	// every bucket.
	buckets *[bucketCount]map[string]V
	length  int
}

// Get returns the value of a key.
func (m Map[V]) Get(key string) (V, bool) {
	if m.buckets == nil {
		var zero V
		return zero, false
	}
	value, ok := m.buckets[bucketOf(key)][key]
	return value, ok
}

// Len returns the number of keys.
func (m Map[V]) Len() int { return m.length }

// All iterates over keys and values in no particular order.
func (m Map[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if m.buckets == nil {
			return
		}
		for _, bucket := range m.buckets {
			for key, value := range bucket {
				if !yield(key, value) {
					return
				}
			}
		}
	}
}

// Edit starts a successor of the map.
func (m Map[V]) Edit() *Editor[V] {
	return &Editor[V]{next: m}
}

// Editor collects the changes that lead from one map to its successor. It
// copies a bucket the first time that it changes it.
type Editor[V any] struct {
	next  Map[V]
	owned [bucketCount]bool
	dirty bool
}

// Get returns the value of a key, changes so far included.
func (e *Editor[V]) Get(key string) (V, bool) { return e.next.Get(key) }

// Set sets the value of a key.
func (e *Editor[V]) Set(key string, value V) {
	bucket := e.own(bucketOf(key))
	if _, ok := bucket[key]; !ok {
		e.next.length++
	}
	bucket[key] = value
}

// Delete removes a key.
func (e *Editor[V]) Delete(key string) {
	if _, ok := e.next.Get(key); !ok {
		return
	}
	delete(e.own(bucketOf(key)), key)
	e.next.length--
}

// Map returns the successor. The editor must not be used any more.
func (e *Editor[V]) Map() Map[V] { return e.next }

// own makes the bucket one that no other map shares.
func (e *Editor[V]) own(i int) map[string]V {
	if !e.dirty {
		var buckets [bucketCount]map[string]V
		if e.next.buckets != nil {
			buckets = *e.next.buckets
		}
		e.next.buckets = &buckets
		e.dirty = true
	}
	if !e.owned[i] {
		bucket := make(map[string]V, len(e.next.buckets[i])+1)
		for key, value := range e.next.buckets[i] {
			bucket[key] = value
		}
		e.next.buckets[i] = bucket
		e.owned[i] = true
	}
	return e.next.buckets[i]
}

func bucketOf(key string) int {
	return int(xxhash.Sum64String(key) % bucketCount)
}
