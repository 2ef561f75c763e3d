// SPDX-License-Identifier: Apache-2.0

// Package canonical computes the version of a resource: a hash of an encoding
// of its content that is our own. Protobuf's bytes would not do, for they may
// differ between builds, and a version must mean the same to every calculator.
//
// Each type has a schema number that enters its versions. It rises when the
// meaning of the type's fields changes or their encoding does, so that only
// resources of that type are sent anew after an upgrade.
package canonical

import (
	"sync"

	"github.com/cespare/xxhash/v2"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Types lists the resource types in the order in which a batch carries them.
func Types() []dataplanev1.ResourceType {
	return []dataplanev1.ResourceType{
		dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG,
		dataplanev1.ResourceType_RESOURCE_TYPE_NODE,
		dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT,
		dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS,
	}
}

// Schema gives the schema number of a type, 0 if the type is not known.
func Schema(resourceType dataplanev1.ResourceType) uint32 {
	switch resourceType {
	case dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG,
		dataplanev1.ResourceType_RESOURCE_TYPE_NODE,
		dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT,
		dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE,
		dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS:
		return 1
	default:
		return 0
	}
}

// OldestSchema gives the lowest schema number of a type of which an agent
// understands what is computed here, 0 if the type is not known. It may stay
// behind Schema, and has to until no supported agent is older: what an old agent
// reads of a resource must be right without the fields that it does not know.
func OldestSchema(resourceType dataplanev1.ResourceType) uint32 {
	if Schema(resourceType) == 0 {
		return 0
	}
	return 1
}

// buffers keeps encoding buffers; nothing of one use is seen by the next.
var buffers = sync.Pool{New: func() any { return new(encoder) }}

// Version computes the version of a resource from its name and content. The
// version that the resource has already does not matter.
func Version(resource *dataplanev1.Resource) uint64 {
	e := buffers.Get().(*encoder)
	e.buffer = e.buffer[:0]
	encode(e, resource)
	version := xxhash.Sum64(e.buffer)
	buffers.Put(e)
	return version
}

// encode appends what the version is the hash of.
func encode(e *encoder, resource *dataplanev1.Resource) {
	resourceType := resource.GetName().GetType()
	e.raw(uint64(resourceType))
	e.raw(uint64(Schema(resourceType)))
	e.rawString(resource.GetName().GetKey())
	switch content := resource.GetContent().(type) {
	case *dataplanev1.Resource_NodeConfig:
		encodeNodeConfig(e, content.NodeConfig)
	case *dataplanev1.Resource_Node:
		encodeNode(e, content.Node)
	case *dataplanev1.Resource_Endpoint:
		encodeEndpoint(e, content.Endpoint)
	case *dataplanev1.Resource_BackendSlice:
		encodeBackendSlice(e, content.BackendSlice)
	case *dataplanev1.Resource_Service:
		encodeService(e, content.Service)
	case *dataplanev1.Resource_Calculators:
		encodeCalculators(e, content.Calculators)
	}
}
