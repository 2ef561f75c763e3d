// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that frames fall back to
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// maxUpdateBytes bounds an Update message, so that no message comes near
// gRPC's limits and an agent decodes while more is on its way. A resource
// larger than this travels alone.
const maxUpdateBytes = 256<<10 - 16 // tag and length of the update stay within 256 KiB

// frame is an encoded SyncResponse. It is immutable and may be sent on any
// number of streams at a time.
type frame struct {
	data []byte
	// kind is the type of the resources in an Update; a frame carries but one,
	// so that frames of several audiences can be merged in order and those of
	// unannounced types left out.
	kind    dataplanev1.ResourceType
	removal bool
	count   int
}

// codec sends frames as they are and everything else as Protocol Buffers.
type codec struct {
	encoding.CodecV2
}

// Codec returns the codec that a server of SyncService must be given by
// grpc.ForceServerCodecV2. It lets all streams share encoded messages.
func Codec() encoding.CodecV2 {
	return codec{encoding.GetCodecV2("proto")}
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(message any) (mem.BufferSlice, error) {
	if f, ok := message.(*frame); ok {
		// A SliceBuffer belongs to no pool: freeing it does nothing.
		return mem.BufferSlice{mem.SliceBuffer(f.data)}, nil
	}
	return c.CodecV2.Marshal(message)
}

// encodeResponse makes a frame of a message that is no Update.
func encodeResponse(response *dataplanev1.SyncResponse) (*frame, error) {
	data, err := deterministic.Marshal(response)
	if err != nil {
		return nil, fmt.Errorf("encoding a %T: %w", response.GetMessage(), err)
	}
	return &frame{data: data}, nil
}

// changes is what leads from one set of resources to another.
type changes struct {
	upserts  []*entry
	removals []name
}

func (c *changes) empty() bool { return len(c.upserts) == 0 && len(c.removals) == 0 }

// sort brings the changes into the order of a batch: referents before what
// refers to them, removals reversed.
func (c *changes) sort() {
	slices.SortFunc(c.upserts, func(a, b *entry) int { return compareNames(a.name, b.name) })
	slices.SortFunc(c.removals, func(a, b name) int { return compareNames(b, a) })
}

// frames encodes sorted changes.
func (c *changes) frames() ([]*frame, error) {
	var frames []*frame
	err := c.each(func(f *frame) error { frames = append(frames, f); return nil })
	return frames, err
}

// each encodes sorted changes a frame at a time.
func (c *changes) each(yield func(*frame) error) error {
	batch := frameBuilder{field: fieldUpserts, yield: yield}
	for _, e := range c.upserts {
		if err := batch.add(e.name.kind, e.encoded); err != nil {
			return err
		}
	}
	if err := batch.flush(); err != nil {
		return err
	}
	batch.field = fieldRemovals
	for _, n := range c.removals {
		element, err := encodeElement(fieldRemovals, n.proto())
		if err != nil {
			return fmt.Errorf("encoding the removal of %s %q: %w", n.kind, n.key, err)
		}
		if err := batch.add(n.kind, element); err != nil {
			return err
		}
	}
	return batch.flush()
}

// content is what a batch carries: frames that all streams share, or changes
// of one stream alone, which are encoded as they are sent. The agents of a
// thousand streams that each need another catch-up cost a frame each, not a
// copy of everything each.
type content struct {
	shared []*frame
	own    changes
}

func (c *content) empty() bool { return len(c.shared) == 0 && c.own.empty() }

func (c *content) each(yield func(*frame) error) error {
	for _, f := range c.shared {
		if err := yield(f); err != nil {
			return err
		}
	}
	return c.own.each(yield)
}

// frameBuilder puts elements of an Update together into frames.
type frameBuilder struct {
	field    protowire.Number
	kind     dataplanev1.ResourceType
	elements [][]byte
	size     int
	yield    func(*frame) error
}

func (b *frameBuilder) add(kind dataplanev1.ResourceType, element []byte) error {
	if len(b.elements) > 0 && (kind != b.kind || b.size+len(element) > maxUpdateBytes) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	b.kind = kind
	b.elements = append(b.elements, element)
	b.size += len(element)
	return nil
}

func (b *frameBuilder) flush() error {
	if len(b.elements) == 0 {
		return nil
	}
	data := make([]byte, 0, protowire.SizeTag(fieldUpdate)+protowire.SizeBytes(b.size))
	data = protowire.AppendTag(data, fieldUpdate, protowire.BytesType)
	data = protowire.AppendVarint(data, uint64(b.size))
	for _, element := range b.elements {
		data = append(data, element...)
	}
	f := &frame{data: data, kind: b.kind, removal: b.field == fieldRemovals, count: len(b.elements)}
	b.elements, b.size = b.elements[:0], 0
	return b.yield(f)
}

// mergeFrames brings the frames of several audiences into the order of one
// batch and leaves out types that the agent has not announced.
func mergeFrames(types typeSet, lists ...[]*frame) []*frame {
	var merged []*frame
	for _, list := range lists {
		for _, f := range list {
			if types.has(f.kind) {
				merged = append(merged, f)
			}
		}
	}
	slices.SortStableFunc(merged, func(a, b *frame) int {
		switch {
		case a.removal != b.removal:
			if a.removal {
				return 1
			}
			return -1
		case a.removal:
			return int(b.kind) - int(a.kind)
		default:
			return int(a.kind) - int(b.kind)
		}
	})
	return merged
}

// typeSet is a set of resource types.
type typeSet uint64

// maxTypes is how many resource types a typeSet and a bucket's digests can
// tell apart.
const maxTypes = 16

func (t typeSet) has(kind dataplanev1.ResourceType) bool {
	return kind >= 0 && kind < maxTypes && t&(1<<kind) != 0
}

func (t *typeSet) add(kind dataplanev1.ResourceType) {
	if kind >= 0 && kind < maxTypes {
		*t |= 1 << kind
	}
}
