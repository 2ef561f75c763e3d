// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/runtime"
)

// ApplyMany writes IPv4 services with backends that are no pods of the cluster,
// all in one file: what is of interest is their number.
func (c *Cluster) ApplyMany(services, backends int) error {
	var objects []runtime.Object
	for i := range services {
		service := Service{
			Name:       fmt.Sprintf("many-%d", i),
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 100, byte(i >> 8), byte(i)})},
			Ports:      []Port{{Port: 80, Target: 8080}},
		}
		for k := range backends {
			n := i*backends + k
			service.Endpoints = append(service.Endpoints, Endpoint{
				IPv4: netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), NodeName: c.Nodes[0].Name,
			})
		}
		objects = append(objects, service.Objects()...)
	}
	return c.Apply("many", objects...)
}
