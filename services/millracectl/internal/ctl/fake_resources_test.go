// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"net/netip"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func ip(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

// fakeResources has one resource of every type.
func fakeResources() []*dataplanev1.Resource {
	const tcp, udp = dataplanev1.Protocol_PROTOCOL_TCP, dataplanev1.Protocol_PROTOCOL_UDP
	named := func(t dataplanev1.ResourceType, key string) *dataplanev1.ResourceName {
		return &dataplanev1.ResourceName{Type: t, Key: key}
	}
	return []*dataplanev1.Resource{
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_NODE_CONFIG, "node-1"), Version: 0xa1,
			Content: &dataplanev1.Resource_NodeConfig{NodeConfig: &dataplanev1.NodeConfig{
				NodeName: "node-1", Mode: dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
				NodePorts: &dataplanev1.PortRange{First: 30000, Last: 32767},
			}},
		},
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_NODE, "node-2"), Version: 0xb2,
			Content: &dataplanev1.Resource_Node{Node: &dataplanev1.Node{
				Name: "node-2", InternalAddresses: [][]byte{ip("192.0.2.2"), ip("2001:db8::2")}, ExternalAddresses: [][]byte{ip("198.51.100.2")},
				PodCidrs: []*dataplanev1.Prefix{{Address: ip("10.1.1.0"), Length: 24}}, Zone: "east",
			}},
		},
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, "shop/cart-0"), Version: 0xc3,
			Content: &dataplanev1.Resource_Endpoint{Endpoint: &dataplanev1.Endpoint{
				Namespace: "shop", Name: "cart-0", Uid: "9b2d", Addresses: [][]byte{ip("10.1.0.5")},
			}},
		},
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_BACKEND_SLICE, "shop/cart/0"), Version: 0xd4,
			Content: &dataplanev1.Resource_BackendSlice{BackendSlice: &dataplanev1.BackendSlice{
				Namespace: "shop", Name: "cart",
				PortSets: []*dataplanev1.PortSet{{Ports: []*dataplanev1.TargetPort{
					{Name: "http", Protocol: tcp, Port: 8080}, {Name: "stats", Protocol: udp, Port: 8125},
				}}},
				Backends: []*dataplanev1.Backend{
					{Address: ip("10.1.0.5"), Node: "node-1", Ready: true, Serving: true},
					{Address: ip("10.1.1.5"), Node: "node-2", Serving: true, Terminating: true},
				},
			}},
		},
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, "shop/cart"), Version: 0xe5,
			Content: &dataplanev1.Resource_Service{Service: &dataplanev1.Service{
				Namespace: "shop", Name: "cart", ClusterIps: [][]byte{ip("10.96.0.7"), ip("fd00::7")},
				ExternalIps:     []*dataplanev1.ServiceAddress{{Address: ip("198.51.100.9"), Ports: []uint32{0}}},
				LoadBalancerIps: []*dataplanev1.ServiceAddress{{Address: ip("203.0.113.9"), Ports: []uint32{0, 1}}},
				Ports: []*dataplanev1.ServicePort{
					{Name: "http", Protocol: tcp, Port: 80, NodePort: 30080}, {Name: "stats", Protocol: udp, Port: 8125},
				},
				BackendSlices: 1,
			}},
		},
		{
			Name: named(dataplanev1.ResourceType_RESOURCE_TYPE_CALCULATORS, "millrace-system/millrace-calculators"), Version: 0xe6,
			Content: &dataplanev1.Resource_Calculators{Calculators: &dataplanev1.Calculators{
				Addresses: []string{"192.0.2.10:7701", "[fd00::10]:7701"}, Authorities: [][]byte{{1}},
			}},
		},
	}
}
