// SPDX-License-Identifier: Apache-2.0

// Package endpoints keeps what the CNI plugin tells of this node's pods. It is
// known before a calculator can know, and it outlives the agent's process: each
// endpoint is a file in a directory in memory, so that an agent that starts
// while no calculator answers knows the pods of the one before.
package endpoints

import (
	"net/netip"
	"slices"
	"time"
)

// Attachment identifies one interface of one sandbox, as the container runtime
// does.
type Attachment struct {
	// Network is the name of the network in the CNI configuration.
	Network string `json:"network"`
	// Container is the sandbox.
	Container string `json:"container"`
	// Interface is the interface's name in the pod.
	Interface string `json:"interface"`
}

// String returns the attachment for people.
func (a Attachment) String() string {
	return a.Interface + " of sandbox " + a.Container + " in network " + a.Network
}

// Endpoint is a pod's interface as the CNI plugin told of it.
type Endpoint struct {
	Attachment
	// Namespace, Name and UID are the pod's.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	// Addresses are the interface's, sorted.
	Addresses []netip.Addr `json:"addresses"`
	// Device is the name of the node's end of the pair and Index its index; 0 as
	// long as it is not known.
	Device string `json:"device"`
	Index  uint32 `json:"index"`
	// NetNS is the path of the pod's network namespace and Cookie its cookie, 0
	// if the kernel does not tell it.
	NetNS  string `json:"netns,omitempty"`
	Cookie uint64 `json:"cookie,omitempty"`
	// Added is when the plugin told of it.
	Added time.Time `json:"added"`
	// Replaces is the UID of the pod of this name that calculators told of when
	// this one came. They have yet to hear of the new pod, so as long as they
	// name that UID they know less than this node.
	Replaces string `json:"replaces,omitempty"`
}

// Key is the key of the pod's Endpoint resource, "namespace/pod".
func (e *Endpoint) Key() string { return e.Namespace + "/" + e.Name }

// Ended is a pod that the CNI plugin has taken down while calculators still told
// of it.
type Ended struct {
	// Key is the key of its Endpoint resource.
	Key string `json:"key"`
	// UID is the pod's.
	UID string `json:"uid"`
	// Addresses are those that it had.
	Addresses []netip.Addr `json:"addresses"`
}

// Covers tells whether what a calculator says of a pod is about the one that has
// ended. A pod's sandbox can be made anew, with other addresses.
func (e *Ended) Covers(key, uid string, addresses []netip.Addr) bool {
	return e.Key == key && e.UID == uid &&
		!slices.ContainsFunc(addresses, func(a netip.Addr) bool { return !slices.Contains(e.Addresses, a) })
}

// Known is everything that the CNI plugin has told.
type Known struct {
	// Endpoints are those that exist, the oldest first.
	Endpoints []Endpoint
	// Ended are those that calculators do not know to be gone.
	Ended []Ended
}
