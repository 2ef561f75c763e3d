// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// goTypes are the Go sides of the C structs.
var goTypes = map[string]any{
	"frontend_key_v4": FrontendKeyV4{}, "frontend_key_v6": FrontendKeyV6{},
	"backend_v4": BackendV4{}, "backend_v6": BackendV6{},
	"affinity_key_v4": AffinityKeyV4{}, "affinity_key_v6": AffinityKeyV6{},
	"affinity_v4": AffinityV4{}, "affinity_v6": AffinityV6{},
	"route_key_v4": RouteKeyV4{}, "route_key_v6": RouteKeyV6{},
	"ct_key_v4": CtKeyV4{}, "ct_key_v6": CtKeyV6{},
	"ct_entry_v4": CtEntryV4{}, "ct_entry_v6": CtEntryV6{},
	"fragment_key_v4": FragmentKeyV4{}, "fragment_key_v6": FragmentKeyV6{},
	"sock_peer_v4": SockPeerV4{}, "sock_peer_v6": SockPeerV6{},
	"sock_state_v4": SockStateV4{}, "sock_state_v6": SockStateV6{},
	"connected_v4": ConnectedV4{}, "connected_v6": ConnectedV6{},
	"frontend": Frontend{}, "route": Route{}, "fragment": Fragment{}, "config": Config{},
	"id_key": IDKey{}, "counter_key": CounterKey{}, "counter": Counter{}, "ct_pressure": CtPressure{},
	"ct_move_request": CtMoveRequest{},
}

// goNumbers are the Go sides of the C enums' values.
var goNumbers = map[string]uint64{
	"FRONTEND_CLUSTER_IP": uint64(FrontendClusterIP), "FRONTEND_NODE_PORT": uint64(FrontendNodePort),
	"FRONTEND_EXTERNAL_IP": uint64(FrontendExternalIP), "FRONTEND_LOAD_BALANCER": uint64(FrontendLoadBalancer),
	"FRONTEND_HOST_ONLY": uint64(FrontendHostOnly),
	"BACKEND_LOCAL":      uint64(BackendLocal), "BACKEND_HOST_NETWORK": uint64(BackendHostNetwork),
	"AFFINITY_TICK_SHIFT": affinityTickShift,
	"ROUTE_POD":           uint64(RoutePod), "ROUTE_NODE": uint64(RouteNode), "ROUTE_LOCAL": uint64(RouteLocal),
	"CONFIG_FAST_PATH": uint64(ConfigFastPath), "CONFIG_ENABLED": uint64(ConfigEnabled), "CONFIG_BEHIND": uint64(ConfigBehind),
	"CT_RECORD": uint64(CtRecord), "CT_ALIAS_FRONTEND": uint64(CtAliasFrontend), "CT_ALIAS_BACKEND": uint64(CtAliasBackend),
	"CT_ORIG": uint64(CtOrig), "CT_REPLY": uint64(CtReply),
	"CT_NEW": uint64(CtNew), "CT_REPLIED": uint64(CtReplied), "CT_ESTABLISHED": uint64(CtEstablished),
	"CT_CLOSING": uint64(CtClosing), "CT_CLOSED": uint64(CtClosed),
	"CT_ORIG_IS_LO": uint64(CtOrigIsLo), "CT_DNAT": uint64(CtDNAT), "CT_SNAT": uint64(CtSNAT),
	"CT_CLUSTER": uint64(CtCluster), "CT_HAIRPIN": uint64(CtHairpin), "CT_HOST_CLIENT": uint64(CtHostClient),
	"CT_MOVE_ESTABLISHED": uint64(CtMoveEstablished), "CT_MOVE_EMBRYONIC": uint64(CtMoveEmbryonic),
	"CT_MOVE_COPY": uint64(CtMoveCopy), "CT_MOVE_SETTLE": uint64(CtMoveSettle),
	"DEVICE_NONE": uint64(DeviceNone), "DEVICE_POD": uint64(DevicePod), "DEVICE_UPLINK": uint64(DeviceUplink),
	"SOCK_PEER_FREE": uint64(SockPeerFree), "SOCK_PEER_CURRENT": uint64(SockPeerCurrent), "SOCK_PEER_PAST": uint64(SockPeerPast),
	"REASON_NONE": uint64(ReasonNone), "REASON_NO_BACKEND": uint64(ReasonNoBackend),
	"REASON_NO_SNAT_PORT": uint64(ReasonNoSnatPort), "REASON_CT_FULL": uint64(ReasonCtFull),
	"REASON_MALFORMED": uint64(ReasonMalformed), "REASON_BACKEND_MISSING": uint64(ReasonBackendMissing),
	"REASON_FIB": uint64(ReasonFib), "REASON_FRAGMENT": uint64(ReasonFragment),
	"REASON_REWRITE": uint64(ReasonRewrite), "REASON_UNSUPPORTED": uint64(ReasonUnsupported),
	"REASON_COUNT": uint64(ReasonCount),
}

// networkOrder names the C types of fields whose Go side is an array of bytes.
var networkOrder = map[string]bool{"__be16": true, "__be32": true, "ip_v4": true, "ip_v6": true}

func loadTypes(t *testing.T) *btf.Spec {
	t.Helper()
	spec, err := btf.LoadSpec("testdata/types.o")
	if err != nil {
		t.Fatalf("read the C side (go generate ./bpf/... makes it): %v", err)
	}
	return spec
}

func TestStructs(t *testing.T) {
	spec := loadTypes(t)
	seen := map[string]bool{}
	for typ, err := range spec.All() {
		if err != nil {
			t.Fatal(err)
		}
		c, ok := typ.(*btf.Struct)
		if !ok || c.Name == "" || c.Name == "ip_v4" || c.Name == "ip_v6" {
			continue
		}
		seen[c.Name] = true
		g, ok := goTypes[c.Name]
		if !ok {
			t.Errorf("struct %s has no Go side", c.Name)
			continue
		}
		t.Run(c.Name, func(t *testing.T) { compareStruct(t, c, reflect.TypeOf(g)) })
	}
	for name := range goTypes {
		if !seen[name] {
			t.Errorf("struct %s has no C side", name)
		}
	}
}

func compareStruct(t *testing.T, c *btf.Struct, g reflect.Type) {
	if int(c.Size) != int(g.Size()) {
		t.Errorf("C has %d bytes, Go %d", c.Size, g.Size())
	}
	fields := map[string]reflect.StructField{}
	end := uintptr(0)
	for i := range g.NumField() {
		f := g.Field(i)
		if f.Offset != end {
			t.Errorf("Go has padding before %s", f.Name)
		}
		end = f.Offset + f.Type.Size()
		fields[strings.ToLower(f.Name)] = f
	}
	if end != g.Size() {
		t.Error("Go has padding at the end")
	}
	cEnd := uint32(0)
	for _, m := range c.Members {
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if m.Offset.Bytes() != cEnd {
			t.Errorf("C has padding before %s", m.Name)
		}
		cEnd = m.Offset.Bytes() + uint32(size)
		f, ok := fields[strings.ReplaceAll(m.Name, "_", "")]
		if !ok {
			t.Errorf("Go lacks field %s", m.Name)
			continue
		}
		delete(fields, strings.ToLower(f.Name))
		if int(f.Offset) != int(m.Offset.Bytes()) || int(f.Type.Size()) != size {
			t.Errorf("%s: C [%d,+%d), Go %s [%d,+%d)", m.Name, m.Offset.Bytes(), size, f.Name, f.Offset, f.Type.Size())
		}
		if be, bytes := networkOrder[typeName(m.Type)], isBytes(f.Type); be && !bytes {
			t.Errorf("%s is in network order, Go has %s", m.Name, f.Type)
		}
	}
	for name := range fields {
		t.Errorf("C lacks field %s", name)
	}
}

// typeName is the name of a type, or of an array's element.
func typeName(t btf.Type) string {
	if a, ok := t.(*btf.Array); ok {
		t = a.Type
	}
	return t.TypeName()
}

func isBytes(t reflect.Type) bool {
	return t.Kind() == reflect.Array && t.Elem().Kind() == reflect.Uint8
}

func TestNumbers(t *testing.T) {
	seen := map[string]bool{}
	for typ, err := range loadTypes(t).All() {
		if err != nil {
			t.Fatal(err)
		}
		e, ok := typ.(*btf.Enum)
		if !ok {
			continue
		}
		for _, v := range e.Values {
			seen[v.Name] = true
			if g, ok := goNumbers[v.Name]; !ok {
				if strings.Contains(e.Name, "_") || e.Name == "reason" {
					t.Errorf("enum %s: %s has no Go side", e.Name, v.Name)
				}
			} else if g != v.Value {
				t.Errorf("%s: C has %d, Go %d", v.Name, v.Value, g)
			}
		}
	}
	for name := range goNumbers {
		if !seen[name] {
			t.Errorf("%s has no C side", name)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{(FrontendClusterIP | FrontendHostOnly).String(), "cluster-ip|host-only"},
		{FrontendFlags(1 << 9).String(), "0x200"},
		{BackendFlags(0).String(), "none"},
		{ReasonUnsupported.String(), "unsupported"},
		{(ReasonCount - 1).String(), reasonNames[len(reasonNames)-1]},
		{CtHairpin.String(), "hairpin"},
		{AffinityKeyV4{Client: V4{10, 1, 0, 9}, ServiceID: 7}.String(), "10.1.0.9 of service 7"},
		{NewSocketAffinityKey[V6](5<<32|4, 7).String(), "netns 21474836484 of service 7"},
		{AffinityV4{BackendAddr: V4{10, 1, 0, 7}, BackendPort: Port(80), Used: 3}.String(), "10.1.0.7:80 used at 3"},
		{Frontend{ServiceID: 7, FirstBackend: 4, BackendCount: 2, Flags: FrontendNodePort, AffinityTimeout: 60}.String(),
			"service 7 backends [4,6) node-port affinity 60s"},
		{SockPeerPast.String(), "past"},
		{CtKeyV4{Lo: V4{10, 0, 0, 1}, Hi: V4{10, 0, 0, 2}, LoPort: Port(1), HiPort: Port(2), Proto: ProtoTCP}.String(),
			"tcp 10.0.0.1:1 <> 10.0.0.2:2"},
		{FrontendKeyV6{Addr: V6{0xfd, 15: 1}, Port: Port(80), Proto: ProtoUDP}.String(), "udp [fd00::1]:80"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestKeys(t *testing.T) {
	ap := netip.MustParseAddrPort
	k1, lo1, ok1 := NewCtKey[V4](ap("10.0.0.2:80"), ap("10.0.0.1:4000"), ProtoTCP)
	k2, lo2, ok2 := NewCtKey[V4](ap("10.0.0.1:4000"), ap("10.0.0.2:80"), ProtoTCP)
	if k1 != k2 || lo1 || !lo2 || !ok1 || !ok2 {
		t.Errorf("directions differ: %v %v, %v %v", k1, k2, lo1, lo2)
	}
	// Ports count as numbers, not as bytes of the machine's order.
	k3, lo3, _ := NewCtKey[V6](ap("[fd00::1]:256"), ap("[fd00::1]:1"), ProtoUDP)
	if lo3 || k3.LoPort.Uint16() != 1 {
		t.Errorf("ports in wrong order: %v", k3)
	}
	if _, ok := NewFrontendKey[V4](ap("[fd00::1]:80"), ProtoTCP); ok {
		t.Error("IPv6 address accepted as IPv4")
	}
	if k, ok := NewFrontendKey[V4](ap("[::ffff:10.0.0.1]:80"), ProtoTCP); !ok || k.Addr != (V4{10, 0, 0, 1}) {
		t.Errorf("v4-mapped address: %v %v", k, ok)
	}
	if k, ok := NewRouteKey[V4](netip.MustParsePrefix("10.1.2.3/16")); !ok || k.String() != "10.1.0.0/16" {
		t.Errorf("host bits kept: %v", k)
	}
	if k := (FrontendKeyV4{Addr: V4{1, 2, 3, 4}, Port: Port(0x1234)}); k.Port != (Be16{0x12, 0x34}) || k.AddrPort() != ap("1.2.3.4:4660") {
		t.Errorf("network order: %v", k)
	}
}
