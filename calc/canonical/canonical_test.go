// SPDX-License-Identifier: Apache-2.0

package canonical_test

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/millrace-project/millrace/calc/canonical"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// samples gives a resource of every type with every field set.
func samples(t *testing.T) map[dataplanev1.ResourceType]*dataplanev1.Resource {
	t.Helper()
	byType := map[dataplanev1.ResourceType]*dataplanev1.Resource{}
	content := (&dataplanev1.Resource{}).ProtoReflect().Descriptor().Oneofs().ByName("content").Fields()
	types := canonical.Types()
	if content.Len() != len(types) {
		t.Fatalf("Types lists %d types, Resource has %d", len(types), content.Len())
	}
	for i, resourceType := range types {
		resource := &dataplanev1.Resource{Name: &dataplanev1.ResourceName{Type: resourceType, Key: "k"}}
		field := content.Get(i)
		fill(resource.ProtoReflect().Mutable(field).Message())
		byType[resourceType] = resource
	}
	return byType
}

// fill sets every field: scalars to something, lists to one element.
func fill(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsList() && field.Message() != nil:
			fill(message.Mutable(field).List().AppendMutable().Message())
		case field.IsList():
			message.Mutable(field).List().Append(scalar(field, 1))
		case field.Message() != nil:
			fill(message.Mutable(field).Message())
		default:
			message.Set(field, scalar(field, 1))
		}
	}
}

func scalar(field protoreflect.FieldDescriptor, n int) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("sample"[:n])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("sample")[:n])
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	default:
		panic("no sample for " + field.Kind().String())
	}
}

// mutations calls check after each single change to the message, undoing it
// afterwards.
func mutations(message protoreflect.Message, path string, check func(path string)) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		path := path + "." + string(field.Name())
		kept := proto.Clone(message.Interface()).ProtoReflect().Get(field)
		message.Clear(field)
		check(path + " cleared")
		message.Set(field, kept)
		switch {
		case field.IsList() && field.Message() != nil:
			list := message.Mutable(field).List()
			mutations(list.Get(0).Message(), path+"[0]", check)
			fill(list.AppendMutable().Message())
			check(path + " appended to")
			list.Truncate(1)
		case field.IsList():
			list := message.Mutable(field).List()
			list.Append(scalar(field, 1))
			check(path + " appended to")
			list.Truncate(1)
			list.Set(0, scalar(field, 2))
			check(path + "[0] changed")
			list.Set(0, scalar(field, 1))
		case field.Message() != nil:
			mutations(message.Mutable(field).Message(), path, check)
		case field.Kind() == protoreflect.BoolKind:
			// Cleared is the only other value.
		default:
			message.Set(field, scalar(field, 2))
			check(path + " changed")
			message.Set(field, kept)
		}
	}
}

// TestEveryFieldCounts fails when a field is added to a resource and not to
// its encoding.
func TestEveryFieldCounts(t *testing.T) {
	t.Parallel()
	for resourceType, resource := range samples(t) {
		seen := map[uint64]string{canonical.Version(resource): "unchanged"}
		content := resource.ProtoReflect()
		field := content.WhichOneof(content.Descriptor().Oneofs().ByName("content"))
		count := 0
		mutations(content.Mutable(field).Message(), resourceType.String(), func(path string) {
			count++
			version := canonical.Version(resource)
			if other, ok := seen[version]; ok {
				t.Errorf("%s has the version of %s", path, other)
			}
			seen[version] = path
		})
		if count < 5 {
			t.Errorf("%s: only %d changes tried", resourceType, count)
		}
	}
}

func TestVersionDependsOnContentAlone(t *testing.T) {
	t.Parallel()
	for resourceType, resource := range samples(t) {
		copied := proto.Clone(resource).(*dataplanev1.Resource)
		copied.Version = 12345
		if canonical.Version(copied) != canonical.Version(resource) {
			t.Errorf("%s: the present version enters the new one", resourceType)
		}
		copied.Name.Key = "other"
		if canonical.Version(copied) == canonical.Version(resource) {
			t.Errorf("%s: the key does not count", resourceType)
		}
	}
	if got := canonical.Schema(dataplanev1.ResourceType_RESOURCE_TYPE_UNSPECIFIED); got != 0 {
		t.Errorf("schema of no type is %d", got)
	}
}
