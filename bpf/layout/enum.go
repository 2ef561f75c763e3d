// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"math/bits"
	"strconv"
	"strings"
)

// FrontendFlags is enum frontend_flags.
type FrontendFlags uint32

// What a frontend's address is.
const (
	FrontendClusterIP FrontendFlags = 1 << iota
	FrontendNodePort
	FrontendExternalIP
	FrontendLoadBalancer
	// FrontendHostOnly is a loopback address: only for sockets of the host's
	// own namespace.
	FrontendHostOnly
)

// BackendFlags is enum backend_flags.
type BackendFlags uint16

// Where a backend is.
const (
	BackendLocal       BackendFlags = 1 << iota // on this node, pod or host network
	BackendHostNetwork                          // answers on an address of a node
)

// RouteFlags is enum route_flags.
type RouteFlags uint32

// Who owns an address.
const (
	RoutePod RouteFlags = 1 << iota
	RouteNode
	RouteLocal // on this node
)

// ConfigFlags is enum config_flags.
type ConfigFlags uint32

const (
	// ConfigFastPath redirects established flows of the cluster past the host's
	// stack.
	ConfigFastPath ConfigFlags = 1 << iota
	// ConfigEnabled lets the programs answer; cleared, every program passes.
	ConfigEnabled
	// ConfigBehind says that programs of an earlier generation run before these
	// at every hook. The loader sets it.
	ConfigBehind
)

// CtKind is enum ct_kind.
type CtKind uint8

// Kinds of conntrack entries.
const (
	CtRecord        CtKind = 1
	CtAliasFrontend CtKind = 2 // under client and frontend
	CtAliasBackend  CtKind = 3 // under client and backend, only with source translation
)

// CtDir is enum ct_dir, an index.
type CtDir = int

// Directions of a flow.
const (
	CtOrig  CtDir = 0 // from the client
	CtReply CtDir = 1 // to the client
)

// CtState is enum ct_state.
type CtState uint8

// States of a flow.
const (
	CtNew         CtState = 0 // originator was seen
	CtReplied     CtState = 1 // the other end answered
	CtEstablished CtState = 2 // originator answered that
	CtClosing     CtState = 3 // FIN from either end
	CtClosed      CtState = 4 // FINs from both ends, or RST
)

// CtFlags is enum ct_flags.
type CtFlags uint16

// Flags of a conntrack entry.
const (
	CtOrigIsLo   CtFlags = 1 << iota // in this entry's key, the client's side is Lo
	CtDNAT                           // frontend and backend differ
	CtSNAT                           // source and client differ
	CtCluster                        // both ends are pods or nodes of the stream
	CtHairpin                        // the backend is the client
	CtHostClient                     // opened by the host itself
)

// DeviceKind is enum device_kind, as stored in a byte.
type DeviceKind uint8

// Kinds of devices.
const (
	DeviceNone   DeviceKind = 0
	DevicePod    DeviceKind = 1
	DeviceUplink DeviceKind = 2
)

// SockPeerUsed is enum sock_peer_used.
type SockPeerUsed uint8

// What a socket's peer is used for.
const (
	SockPeerFree    SockPeerUsed = 0
	SockPeerCurrent SockPeerUsed = 1 // what is sent to the frontend goes to this backend
	SockPeerPast    SockPeerUsed = 2 // the service lost this backend; answers may be under way
)

// Reason is enum reason: why a packet or a call was dropped or answered in the
// backend's place.
type Reason uint16

// Reasons.
const (
	ReasonNone           Reason = 0
	ReasonNoBackend      Reason = 1 // refused: the service has no backend
	ReasonNoSnatPort     Reason = 2 // dropped: every source port tried is taken
	ReasonCtFull         Reason = 3 // dropped: no room for a record of a translated flow
	ReasonMalformed      Reason = 4 // dropped: shorter than its headers say
	ReasonBackendMissing Reason = 5 // dropped: the backends array ends before the frontend says
	ReasonFib            Reason = 6 // passed to the stack: no neighbour or route for the fast path
	ReasonFragment       Reason = 7 // dropped: a later fragment whose first one is unknown
	ReasonRewrite        Reason = 8 // dropped: a header could not be written
	ReasonUnsupported    Reason = 9 // dropped: headers that the programs do not handle, to a service
	ReasonCount          Reason = 10
)

var (
	frontendFlagNames = []string{"cluster-ip", "node-port", "external-ip", "load-balancer", "host-only"}
	backendFlagNames  = []string{"local", "host-network"}
	routeFlagNames    = []string{"pod", "node", "local"}
	configFlagNames   = []string{"fast-path", "enabled", "behind"}
	ctFlagNames       = []string{"orig-is-lo", "dnat", "snat", "cluster", "hairpin", "host-client"}
	ctKindNames       = []string{"none", "record", "alias-frontend", "alias-backend"}
	ctStateNames      = []string{"new", "replied", "established", "closing", "closed"}
	deviceKindNames   = []string{"none", "pod", "uplink"}
	sockPeerUsedNames = []string{"free", "current", "past"}
	reasonNames       = []string{"none", "no-backend", "no-snat-port", "ct-full", "malformed", "backend-missing", "fib",
		"fragment", "rewrite", "unsupported"}
)

// String names the flags set, joined by "|".
func (f FrontendFlags) String() string { return flagNames(uint64(f), frontendFlagNames) }

// String names the flags set, joined by "|".
func (f BackendFlags) String() string { return flagNames(uint64(f), backendFlagNames) }

// String names the flags set, joined by "|".
func (f RouteFlags) String() string { return flagNames(uint64(f), routeFlagNames) }

// String names the flags set, joined by "|".
func (f ConfigFlags) String() string { return flagNames(uint64(f), configFlagNames) }

// String names the flags set, joined by "|".
func (f CtFlags) String() string { return flagNames(uint64(f), ctFlagNames) }

// String is the kind's name.
func (k CtKind) String() string { return enumName(int(k), ctKindNames) }

// String is the state's name.
func (s CtState) String() string { return enumName(int(s), ctStateNames) }

// String is the kind's name.
func (k DeviceKind) String() string { return enumName(int(k), deviceKindNames) }

// String is the use's name.
func (u SockPeerUsed) String() string { return enumName(int(u), sockPeerUsedNames) }

// String is the reason's name, as in metrics.
func (r Reason) String() string { return enumName(int(r), reasonNames) }

func enumName(v int, names []string) string {
	if v < len(names) {
		return names[v]
	}
	return strconv.Itoa(v)
}

func flagNames(v uint64, names []string) string {
	if v == 0 {
		return "none"
	}
	var set []string
	for ; v != 0; v &= v - 1 {
		i := bits.TrailingZeros64(v)
		if i < len(names) {
			set = append(set, names[i])
		} else {
			set = append(set, "0x"+strconv.FormatUint(1<<i, 16))
		}
	}
	return strings.Join(set, "|")
}
