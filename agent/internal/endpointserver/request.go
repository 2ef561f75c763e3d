// SPDX-License-Identifier: Apache-2.0

package endpointserver

import (
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/grpc/codes"

	"github.com/millrace-project/millrace/agent/internal/endpoints"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func attachmentOf(a *agentv1.CNIAttachment) (endpoints.Attachment, error) {
	for _, field := range []struct{ name, value string }{
		{"network", a.GetNetwork()}, {"container_id", a.GetContainerId()}, {"interface", a.GetInterface()},
	} {
		if field.value == "" {
			return endpoints.Attachment{}, fail(codes.InvalidArgument, ReasonInvalidField, "field attachment.%s: must not be empty", field.name)
		}
	}
	return endpoints.Attachment{Network: a.GetNetwork(), Container: a.GetContainerId(), Interface: a.GetInterface()}, nil
}

func addressesOf(texts []string) ([]netip.Addr, error) {
	var list []netip.Addr
	for i, text := range texts {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
			return nil, fail(codes.InvalidArgument, ReasonInvalidField, "field addresses[%d]: %q is no address that a pod can have", i, text)
		}
		list = append(list, addr.Unmap())
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// endpointOf reads a request.
func endpointOf(r *agentv1.AddEndpointRequest) (endpoints.Endpoint, error) {
	attachment, err := attachmentOf(r.GetAttachment())
	if err != nil {
		return endpoints.Endpoint{}, err
	}
	for _, field := range []struct{ name, value string }{
		{"pod_namespace", r.GetPodNamespace()}, {"pod_name", r.GetPodName()}, {"pod_uid", r.GetPodUid()},
	} {
		if field.value == "" {
			return endpoints.Endpoint{}, fail(codes.InvalidArgument, ReasonInvalidField, "field %s: must not be empty", field.name)
		}
	}
	addresses, err := addressesOf(r.GetAddresses())
	if err != nil {
		return endpoints.Endpoint{}, err
	}
	switch {
	case len(addresses) == 0:
		return endpoints.Endpoint{}, fail(codes.InvalidArgument, ReasonInvalidField, "field addresses: at least one is needed")
	case (r.GetDeviceIndex() == 0) != (r.GetDeviceName() == ""):
		return endpoints.Endpoint{}, fail(codes.InvalidArgument, ReasonInvalidField, "field device_index: must be given with device_name, or neither")
	}
	return endpoints.Endpoint{
		Attachment: attachment, Namespace: r.GetPodNamespace(), Name: r.GetPodName(), UID: r.GetPodUid(), Addresses: addresses,
		Device: r.GetDeviceName(), Index: r.GetDeviceIndex(), NetNS: r.GetNetns(), Cookie: r.GetNetnsCookie(),
	}, nil
}

// difference tells what an endpoint has that is not wanted, empty if nothing.
func difference(have, want *endpoints.Endpoint) string {
	switch {
	case have.Key() != want.Key():
		return "pod " + have.Key()
	case have.UID != want.UID:
		return fmt.Sprintf("UID %s of pod %s", have.UID, have.Key())
	case !slices.Equal(have.Addresses, want.Addresses):
		return fmt.Sprintf("addresses %v", have.Addresses)
	case have.Cookie != want.Cookie && want.Cookie != 0:
		return "another network namespace"
	case have.Index != want.Index && want.Index != 0:
		return fmt.Sprintf("device %s (index %d)", have.Device, have.Index)
	}
	return ""
}
