// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

const (
	// maxTail bounds the memory, and maxTailSums the bytes that checksums are
	// made of, in telling a torn record from a damaged one: about 0.2 s.
	maxTail     = 256 << 20
	maxTailSums = 2 << 30
)

// judgeTail tells why the end of a log that looks like a torn record, from an
// offset on, is none; empty if it is. The checksum does not cover the length, so
// one flipped bit there makes a whole record, and all behind it, look like the
// rest of a write that was never finished; but the kernel has what they say.
func judgeTail(file *os.File, from, size int64) (string, error) {
	if size-from > maxTail {
		return fmt.Sprintf("more than %d bytes follow", maxTail), nil
	}
	tail := make([]byte, size-from)
	if _, err := io.ReadFull(io.NewSectionReader(file, from, size-from), tail); err != nil {
		return "", err
	}
	if n := wrongLength(tail); n > 0 {
		return fmt.Sprintf("its checksum is that of %d bytes, which are there", n), nil
	}
	at, known := laterRecord(tail, maxTailSums)
	switch {
	case at > 0:
		return fmt.Sprintf("a whole record follows at offset %d", from+int64(at)), nil
	case !known:
		return "whether whole records follow could not be told", nil
	}
	return "", nil
}

// wrongLength returns the length with which the record that tail begins with
// would be whole, 0 if there is none.
func wrongLength(tail []byte) int {
	if len(tail) <= headerSize {
		return 0
	}
	want := ^binary.LittleEndian.Uint32(tail[4:])
	sum := ^uint32(0)
	for i, b := range tail[headerSize:] {
		if sum = castagnoli[byte(sum)^b] ^ sum>>8; sum == want {
			return i + 1
		}
	}
	return 0
}

// laterRecord returns where in tail a whole record begins that is not the first;
// known is false if that took checksums of more than budget bytes.
func laterRecord(tail []byte, budget int) (at int, known bool) {
	for at = 1; at+headerSize < len(tail); at++ {
		length := binary.LittleEndian.Uint32(tail[at:])
		rest := tail[at+headerSize:]
		if length == 0 || uint64(length) > uint64(len(rest)) || !plausible(rest[:length]) {
			continue
		}
		if budget -= int(length); budget < 0 {
			return 0, false
		}
		if crc32.Checksum(rest[:length], castagnoli) == binary.LittleEndian.Uint32(tail[at+4:]) {
			return at, true
		}
	}
	return 0, true
}

// plausible tells whether a payload may be one, by its first bytes, so that few
// checksums are made in vain.
func plausible(payload []byte) bool {
	d := &decoder{data: payload[1:]}
	d.bytes() // boot, or epoch
	switch payload[0] {
	case kindBoot:
		return !d.failed && len(d.data) == 0
	case kindBatch:
		inSync := d.take(1)
		return !d.failed && inSync[0] <= 1
	}
	return false
}
