// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"cmp"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// name is a ResourceName that can be the key of a map.
type name struct {
	kind dataplanev1.ResourceType
	key  string
}

func nameOf(n *dataplanev1.ResourceName) name {
	return name{kind: n.GetType(), key: n.GetKey()}
}

func (n name) proto() *dataplanev1.ResourceName {
	return &dataplanev1.ResourceName{Type: n.kind, Key: n.key}
}

// compareNames orders names as a batch carries upserts.
func compareNames(a, b name) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.key, b.key))
}

// entry is one resource at one version, in the form in which it is sent. It is
// immutable and shared by every snapshot and stream that has it.
type entry struct {
	name    name
	version uint64
	// encoded is the resource as one element of Update.upserts, tag and
	// length included: messages are made by putting entries together.
	encoded []byte
}

// Field numbers of the messages that are put together by hand, read from the
// descriptors so that they cannot differ from the schema.
var (
	fieldUpdate   = fieldNumber(&dataplanev1.SyncResponse{}, "update")
	fieldUpserts  = fieldNumber(&dataplanev1.Update{}, "upserts")
	fieldRemovals = fieldNumber(&dataplanev1.Update{}, "removals")
)

func fieldNumber(message proto.Message, field string) protowire.Number {
	return message.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)).Number()
}

// deterministic makes equal messages equal bytes within one build.
var deterministic = proto.MarshalOptions{Deterministic: true}

// newEntry encodes a resource.
func newEntry(resource *dataplanev1.Resource) (*entry, error) {
	encoded, err := encodeElement(fieldUpserts, resource)
	if err != nil {
		return nil, fmt.Errorf("encoding resource %s %q: %w", resource.GetName().GetType(), resource.GetName().GetKey(), err)
	}
	return &entry{name: nameOf(resource.GetName()), version: resource.GetVersion(), encoded: encoded}, nil
}

// resource decodes the entry.
func (e *entry) resource() (*dataplanev1.Resource, error) {
	_, _, tagLength := protowire.ConsumeTag(e.encoded)
	if tagLength < 0 {
		return nil, fmt.Errorf("reading the tag of %s %q: %w", e.name.kind, e.name.key, protowire.ParseError(tagLength))
	}
	body, length := protowire.ConsumeBytes(e.encoded[tagLength:])
	if length < 0 {
		return nil, fmt.Errorf("reading the length of %s %q: %w", e.name.kind, e.name.key, protowire.ParseError(length))
	}
	resource := &dataplanev1.Resource{}
	if err := proto.Unmarshal(body, resource); err != nil {
		return nil, fmt.Errorf("decoding resource %s %q: %w", e.name.kind, e.name.key, err)
	}
	return resource, nil
}

// encodeElement encodes a message as one field of an outer message.
func encodeElement(field protowire.Number, message proto.Message) ([]byte, error) {
	size := deterministic.Size(message)
	buffer := make([]byte, 0, protowire.SizeTag(field)+protowire.SizeBytes(size))
	buffer = protowire.AppendTag(buffer, field, protowire.BytesType)
	buffer = protowire.AppendVarint(buffer, uint64(size))
	return deterministic.MarshalAppend(buffer, message)
}
