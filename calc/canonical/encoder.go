// SPDX-License-Identifier: Apache-2.0

package canonical

import "encoding/binary"

// encoder appends fields to a buffer. A field is its number and its value;
// a field that has its zero value is left out. Everything of variable length
// is preceded by its length, and a repeated field by its count, so that no two
// contents have the same encoding.
type encoder struct {
	buffer []byte
}

func (e *encoder) raw(value uint64) {
	e.buffer = binary.AppendUvarint(e.buffer, value)
}

func (e *encoder) uint(field int, value uint64) {
	if value != 0 {
		e.raw(uint64(field))
		e.raw(value)
	}
}

func (e *encoder) bool(field int, value bool) {
	if value {
		e.uint(field, 1)
	}
}

func (e *encoder) string(field int, value string) {
	if value != "" {
		e.raw(uint64(field))
		e.rawString(value)
	}
}

func (e *encoder) rawString(value string) {
	e.raw(uint64(len(value)))
	e.buffer = append(e.buffer, value...)
}

func (e *encoder) rawBytes(value []byte) {
	e.raw(uint64(len(value)))
	e.buffer = append(e.buffer, value...)
}

func (e *encoder) bytes(field int, value []byte) {
	if len(value) > 0 {
		e.raw(uint64(field))
		e.rawBytes(value)
	}
}

func (e *encoder) bytesList(field int, values [][]byte) {
	if len(values) > 0 {
		e.raw(uint64(field))
		e.raw(uint64(len(values)))
		for _, value := range values {
			e.rawBytes(value)
		}
	}
}

func (e *encoder) strings(field int, values []string) {
	if len(values) > 0 {
		e.raw(uint64(field))
		e.raw(uint64(len(values)))
		for _, value := range values {
			e.rawString(value)
		}
	}
}

func (e *encoder) uints(field int, values []uint32) {
	if len(values) > 0 {
		e.raw(uint64(field))
		e.raw(uint64(len(values)))
		for _, value := range values {
			e.raw(uint64(value))
		}
	}
}

// end closes a message inside a field; no field has this number.
const end = 0

// messages encodes a repeated field of messages.
func messages[M any](e *encoder, field int, values []M, encode func(*encoder, M)) {
	if len(values) == 0 {
		return
	}
	e.raw(uint64(field))
	e.raw(uint64(len(values)))
	for _, value := range values {
		encode(e, value)
		e.raw(end)
	}
}
