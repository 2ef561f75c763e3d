// SPDX-License-Identifier: Apache-2.0

// Package endpoints makes the Endpoint resources: the pods of a node that
// have addresses of their own.
package endpoints

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/millrace-project/millrace/calc/address"
	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Build reads a Pod object into the content of an Endpoint resource. It is
// nil if the pod is no endpoint: it is not on a node yet, has no address yet,
// is in the host's network, or has ended, so that its address may be another's.
func Build(object *model.Pod) (*dataplanev1.Endpoint, []problem.Problem) {
	if object.NodeName == "" || object.HostNetwork || object.Phase == "Succeeded" || object.Phase == "Failed" {
		return nil, nil
	}
	texts, single := object.PodIPs, false
	if len(texts) == 0 && object.PodIP != "" {
		texts, single = []string{object.PodIP}, true
	}
	problems := &problem.List{Object: object.Key()}
	var usable []netip.Addr
	for i, text := range texts {
		addr, err := address.ParseUnicast(text)
		if err != nil {
			field := "status.podIP"
			if !single {
				field = fmt.Sprintf("status.podIPs[%d].ip", i)
			}
			problems.Add(field, "%v: not used", err)
			continue
		}
		usable = append(usable, addr)
	}
	if len(usable) == 0 {
		return nil, problems.Sorted()
	}
	slices.SortFunc(usable, netip.Addr.Compare)
	usable = slices.Compact(usable)
	content := &dataplanev1.Endpoint{
		Namespace: object.Namespace,
		Name:      object.Name,
		Uid:       object.UID,
		Addresses: make([][]byte, len(usable)),
	}
	for i, addr := range usable {
		content.Addresses[i] = addr.AsSlice()
	}
	return content, problems.Sorted()
}
