// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
)

// object is one compiled file of c/ with the programs in it.
type object struct {
	name string
	elf  []byte
}

// spec reads the object.
func (o object) spec() (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(o.elf))
	if err != nil {
		return nil, fmt.Errorf("read object %s: %w", o.name, err)
	}
	return spec, nil
}

func smallest(of []object) object {
	return slices.MinFunc(of, func(a, b object) int { return len(a.elf) - len(b.elf) })
}

// objects are all of them. Each declares every map, so that any can serve as
// the description of the maps.
var objects = []object{
	{"sock_connect", _SockConnectBytes},
	{"sock_sendmsg", _SockSendmsgBytes},
	{"sock_recvmsg", _SockRecvmsgBytes},
	{"sock_getpeername", _SockGetpeernameBytes},
	{"sock_release", _SockReleaseBytes},
	{"tc_pod_ingress", _TcPodIngressBytes},
	{"tc_pod_egress", _TcPodEgressBytes},
	{"tc_uplink_ingress", _TcUplinkIngressBytes},
	{"tc_uplink_egress", _TcUplinkEgressBytes},
	{"conntrack_move", _ConntrackMoveBytes},
}

// cgroupPrograms are the programs attached to a cgroup, with their hooks.
var cgroupPrograms = []struct {
	name   string
	attach ebpf.AttachType
}{
	// What translates an answer and what cleans up are there before what
	// translates a call: no answer is seen raw, and no entry stays behind.
	{"sock_release", ebpf.AttachCgroupInetSockRelease},
	{"sock_getpeername4", ebpf.AttachCgroupInet4GetPeername},
	{"sock_getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"sock_recvmsg4", ebpf.AttachCGroupUDP4Recvmsg},
	{"sock_recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
	{"sock_connect4", ebpf.AttachCGroupInet4Connect},
	{"sock_connect6", ebpf.AttachCGroupInet6Connect},
	{"sock_sendmsg4", ebpf.AttachCGroupUDP4Sendmsg},
	{"sock_sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
}

// Role tells which programs a device gets.
type Role int

// Roles of devices.
const (
	// Pod is the host's end of a pod's veth.
	Pod Role = iota
	// Uplink is a device towards other nodes and the world.
	Uplink
)

// String is "pod" or "uplink".
func (r Role) String() string {
	if r == Uplink {
		return "uplink"
	}
	return "pod"
}

// Hook is a side of a device, from the host's point of view.
type Hook string

// Hooks of a device.
const (
	Ingress Hook = "ingress" // packets that the host receives from the device
	Egress  Hook = "egress"  // packets that the host sends to it
)

// deviceProgram is the program for a role and hook.
func deviceProgram(r Role, h Hook) string { return "tc_" + r.String() + "_" + string(h) }

// attachType is the tcx hook.
func (h Hook) attachType() ebpf.AttachType {
	if h == Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}
