// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/millrace-project/millrace/agent/internal/held"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// A record is a length and a checksum, both 4 bytes little endian, and the
// payload that they are of. The first byte of a payload is its kind.
const (
	headerSize = 8
	// maxRecord bounds what a corrupt length can make a reader allocate.
	maxRecord = 1 << 30

	kindBoot  = 1 // the boot that the records which follow were written in
	kindBatch = 2 // a batch
)

// magic opens every log and names the format, one of the family.
const (
	magic  = family + "1"
	family = "MILLLOG"
)

// castagnoli has hardware support on both architectures we run on.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errCorrupt = errors.New("corrupt record")
	// errTorn says that the log ends within a record, as after a crash while the
	// last one was being written.
	errTorn = fmt.Errorf("%w: cut off", errCorrupt)
)

// appendRecord frames what build appends to dst.
func appendRecord(dst []byte, build func([]byte) []byte) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, headerSize)...)
	dst = build(dst)
	payload := dst[start+headerSize:]
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(dst[start+4:], crc32.Checksum(payload, castagnoli))
	return dst
}

// readRecord returns the next payload. io.EOF means that the log ends between
// two records; any other error that it is unusable from here on.
func readRecord(r io.Reader, buffer []byte) ([]byte, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w in its header", errTorn)
		}
		return nil, err
	}
	length := binary.LittleEndian.Uint32(header[:])
	if length == 0 || length > maxRecord {
		return nil, fmt.Errorf("%w: length %d", errCorrupt, length)
	}
	// A corrupt length must not cost its size in memory: grow with what is read.
	payload := buffer[:0]
	for len(payload) < int(length) {
		n := min(int(length)-len(payload), 1<<20)
		payload = append(payload, make([]byte, n)...)
		if _, err := io.ReadFull(r, payload[len(payload)-n:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("%w in its payload", errTorn)
			}
			return nil, err
		}
	}
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
		return nil, fmt.Errorf("%w: checksum differs", errCorrupt)
	}
	return payload, nil
}

func appendBytes[T ~string | ~[]byte](dst []byte, b T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendBoot(dst []byte, boot string) []byte {
	return appendBytes(append(dst, kindBoot), boot)
}

func appendBatch(dst []byte, b *held.Batch) []byte {
	dst = append(dst, kindBatch)
	dst = appendBytes(dst, b.Meta.Epoch)
	inSync := byte(0)
	if b.Meta.InSync {
		inSync = 1
	}
	dst = append(dst, inSync)
	dst = binary.AppendUvarint(dst, uint64(len(b.Meta.Position)))
	for kind, version := range b.Meta.Position {
		dst = appendBytes(dst, kind)
		dst = binary.AppendUvarint(dst, version)
	}
	dst = binary.AppendUvarint(dst, uint64(len(b.Removals)))
	for name := range b.Removals {
		dst = binary.AppendUvarint(dst, uint64(name.Type))
		dst = appendBytes(dst, name.Key)
	}
	dst = binary.AppendUvarint(dst, uint64(len(b.Upserts)))
	for name, entry := range b.Upserts {
		dst = binary.AppendUvarint(dst, uint64(name.Type))
		dst = appendBytes(dst, name.Key)
		dst = binary.LittleEndian.AppendUint64(dst, entry.Version)
		dst = appendBytes(dst, entry.Data)
	}
	return dst
}

// decoder reads a payload; after the first error every read returns zero.
type decoder struct {
	data   []byte
	failed bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.failed, d.data = true, nil
		return 0
	}
	d.data = d.data[n:]
	return v
}

func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.data)) {
		d.failed, d.data = true, nil
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}

func (d *decoder) bytes() []byte { return d.take(d.uvarint()) }

func (d *decoder) name() held.Name {
	return held.Name{Type: dataplanev1.ResourceType(d.uvarint()), Key: string(d.bytes())}
}

// decodeBatch decodes the rest of a batch's payload, after its kind.
func decodeBatch(payload []byte) (*held.Batch, error) {
	d := &decoder{data: payload}
	b := held.NewBatch()
	b.Meta.Epoch = string(d.bytes())
	if flag := d.take(1); len(flag) == 1 {
		b.Meta.InSync = flag[0] != 0
	}
	b.Meta.Position = map[string]uint64{}
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		kind := string(d.bytes())
		b.Meta.Position[kind] = d.uvarint()
	}
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		b.Remove(d.name())
	}
	for n := d.uvarint(); n > 0 && !d.failed; n-- {
		name := d.name()
		version := d.take(8)
		data := d.bytes()
		if d.failed {
			break
		}
		b.Upsert(name, held.Entry{
			Version: binary.LittleEndian.Uint64(version),
			// A copy: the payload's buffer is used again.
			Data: append([]byte(nil), data...),
		})
	}
	if d.failed || len(d.data) != 0 {
		return nil, fmt.Errorf("%w: batch does not parse", errCorrupt)
	}
	return b, nil
}
