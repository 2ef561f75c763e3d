// SPDX-License-Identifier: Apache-2.0

// Package nodes makes the Node and NodeConfig resources.
package nodes

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/calc/address"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Build reads a Node object into the Node resource's content.
func Build(object *model.Node) (*dataplanev1.Node, []problem.Problem) {
	problems := &problem.List{Object: object.Key()}
	content := &dataplanev1.Node{
		Name: object.Name,
		Zone: object.Labels[model.LabelZone],
	}
	content.InternalAddresses = addresses(object, "InternalIP", problems)
	content.ExternalAddresses = addresses(object, "ExternalIP", problems)
	content.PodCidrs = podCIDRs(object, problems)
	return content, problems.Sorted()
}

// addresses gives a node's addresses of one type. They keep the object's
// order, for the first of a family is the one that the node speaks from.
func addresses(object *model.Node, addressType string, problems *problem.List) [][]byte {
	var (
		seen   []netip.Addr
		usable [][]byte
	)
	for i, entry := range object.Addresses {
		if entry.Type != addressType {
			continue
		}
		addr, err := address.ParseUnicast(entry.Address)
		if err != nil {
			problems.Add(fmt.Sprintf("status.addresses[%d].address", i), "%v: not used", err)
			continue
		}
		if !slices.Contains(seen, addr) {
			seen = append(seen, addr)
			usable = append(usable, addr.AsSlice())
		}
	}
	return usable
}

func podCIDRs(object *model.Node, problems *problem.List) []*dataplanev1.Prefix {
	texts, single := object.PodCIDRs, false
	if len(texts) == 0 && object.PodCIDR != "" {
		texts, single = []string{object.PodCIDR}, true
	}
	var prefixes []netip.Prefix
	for i, text := range texts {
		prefix, err := address.ParsePrefix(text)
		if err != nil {
			field := "spec.podCIDR"
			if !single {
				field = fmt.Sprintf("spec.podCIDRs[%d]", i)
			}
			problems.Add(field, "%v: not used", err)
			continue
		}
		prefixes = append(prefixes, prefix)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	prefixes = slices.Compact(prefixes)
	var content []*dataplanev1.Prefix
	for _, prefix := range prefixes {
		content = append(content, &dataplanev1.Prefix{
			Address: prefix.Addr().AsSlice(),
			Length:  uint32(prefix.Bits()),
		})
	}
	return content
}
