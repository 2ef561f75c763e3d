// SPDX-License-Identifier: Apache-2.0

package graph

import (
	"github.com/millrace-project/millrace/calc/audience"
	"github.com/millrace-project/millrace/calc/nodes"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// The functions here wrap a type's content into a resource and say who is
// given it.

func nodeResource(content *dataplanev1.Node) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{dataplanev1.ResourceType_RESOURCE_TYPE_NODE, content.GetName()}
	return name, audience.All, &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_Node{Node: content},
	}
}

func configResource(config nodes.Config, node string) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG, node}
	return name, audience.Node(node), &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_NodeConfig{NodeConfig: config.Build(node)},
	}
}

func endpointResource(node string, content *dataplanev1.Endpoint) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{
		dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT,
		content.GetNamespace() + "/" + content.GetName(),
	}
	return name, audience.Node(node), &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_Endpoint{Endpoint: content},
	}
}

func backendSliceResource(key string, content *dataplanev1.BackendSlice) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE, key}
	return name, audience.All, &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_BackendSlice{BackendSlice: content},
	}
}

func serviceResource(key string, content *dataplanev1.Service) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, key}
	return name, audience.All, &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_Service{Service: content},
	}
}

func calculatorsResource(key string, content *dataplanev1.Calculators) (Name, audience.Audience, *dataplanev1.Resource) {
	name := Name{dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS, key}
	return name, audience.All, &dataplanev1.Resource{
		Name:    name.Proto(),
		Content: &dataplanev1.Resource_Calculators{Calculators: content},
	}
}
