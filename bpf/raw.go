// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Here maps are handled as bytes, without knowledge of what is in them.

// rawElements are keys and values of a map's sizes, to be given to batch calls.
type rawElements struct{ keys, values reflect.Value }

func newRawElements(m *ebpf.Map, n int) rawElements {
	slice := func(size uint32) reflect.Value {
		t := reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]()))
		return reflect.MakeSlice(t, n, n)
	}
	return rawElements{slice(m.KeySize()), slice(m.ValueSize())}
}

func (r rawElements) len() int           { return r.keys.Len() }
func (r rawElements) key(i int) []byte   { return r.keys.Index(i).Bytes() }
func (r rawElements) value(i int) []byte { return r.values.Index(i).Bytes() }

func (r rawElements) first(n int) rawElements {
	return rawElements{r.keys.Slice(0, n), r.values.Slice(0, n)}
}

// put writes the elements.
func (r rawElements) put(m *ebpf.Map) error {
	if r.len() == 0 {
		return nil
	}
	_, err := m.BatchUpdate(r.keys.Interface(), r.values.Interface(), nil)
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	for i := range r.len() {
		if err := m.Put(r.key(i), r.value(i)); err != nil {
			return err
		}
	}
	return nil
}

// eachRaw calls f with all elements of a map, many at a time. f must not keep
// them.
func eachRaw(m *ebpf.Map, f func(rawElements) error) error {
	var buffer rawElements
	err := batches(m, func(n int) (any, any) {
		buffer = newRawElements(m, n)
		return buffer.keys.Interface(), buffer.values.Interface()
	}, func(n int) (bool, error) { return true, f(buffer.first(n)) })
	if errors.Is(err, errNoBatches) {
		return eachRawSingly(m, f)
	}
	return err
}

func eachRawSingly(m *ebpf.Map, f func(rawElements) error) error {
	one := newRawElements(m, 1)
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		copy(one.key(0), key)
		copy(one.value(0), value)
		if err := f(one); err != nil {
			return err
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read %s: %w", m, err)
	}
	return nil
}

// copyMap copies all elements to a map of the same layout that is at least as
// large. Nobody else writes to either.
func copyMap(from, to *ebpf.Map) error {
	if from.Type() == ebpf.Array && from.Flags()&to.Flags()&unix.BPF_F_MMAPABLE != 0 {
		return copyArray(from, to)
	}
	return eachRaw(from, func(r rawElements) error { return r.put(to) })
}

// copyWindow is how much of an array is mapped at a time: what is mapped counts
// as the agent's own memory. It is a multiple of every page size.
const copyWindow = 1 << 20

// copyArray copies by mapping, at the speed of memory; by calls it would take
// half a second, in which nothing could be programmed.
func copyArray(from, to *ebpf.Map) error {
	size := int64(from.MaxEntries()) * int64((from.ValueSize()+7)&^7)
	for at := int64(0); at < size; at += copyWindow {
		n := int(min(copyWindow, size-at))
		src, err := unix.Mmap(from.FD(), at, n, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s: %w", from, err)
		}
		dst, err := unix.Mmap(to.FD(), at, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err == nil {
			copy(dst, src)
			err = unix.Munmap(dst)
		}
		if err = errors.Join(err, unix.Munmap(src)); err != nil {
			return fmt.Errorf("map %s: %w", to, err)
		}
	}
	return nil
}
