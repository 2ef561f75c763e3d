// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctl is one setting; names are paths below /proc/sys.
type sysctl struct {
	name, value string
	// optional settings may be missing from the kernel.
	optional bool
}

// baseSysctls hold in every namespace.
func baseSysctls(congestionControl string) []sysctl {
	return []sysctl{
		{name: "net/ipv4/tcp_congestion_control", value: congestionControl},
		{name: "net/ipv6/conf/default/accept_dad", value: "0"},
		{name: "net/ipv6/conf/all/accept_dad", value: "0"},
		{name: "net/ipv6/conf/default/accept_ra", value: "0"},
		{name: "net/ipv6/conf/default/router_solicitations", value: "0"},
		{name: "net/bridge/bridge-nf-call-iptables", value: "0", optional: true},
		{name: "net/bridge/bridge-nf-call-ip6tables", value: "0", optional: true},
		{name: "net/bridge/bridge-nf-call-arptables", value: "0", optional: true},
	}
}

// nodeSysctls make a namespace forward, as Kubernetes demands of nodes.
var nodeSysctls = []sysctl{
	{name: "net/ipv4/ip_forward", value: "1"},
	{name: "net/ipv6/conf/all/forwarding", value: "1"},
	{name: "net/ipv6/conf/default/forwarding", value: "1"},
	// Loose: a node with several uplinks may answer by another one.
	{name: "net/ipv4/conf/all/rp_filter", value: "0"},
	{name: "net/ipv4/conf/default/rp_filter", value: "0"},
}

// podDeviceSysctls make the node answer for the pod's gateway at once. (By
// default a proxied ARP answer waits up to 0.8 s.)
func podDeviceSysctls(device string) []sysctl {
	return []sysctl{
		{name: "net/ipv4/conf/" + device + "/proxy_arp", value: "1"},
		{name: "net/ipv4/neigh/" + device + "/proxy_delay", value: "0"},
	}
}

// applySysctls writes settings of the calling thread's network namespace.
func applySysctls(settings []sysctl) error {
	for _, setting := range settings {
		path := filepath.Join("/proc/sys", setting.name)
		if err := os.WriteFile(path, []byte(setting.value), 0); err != nil {
			if setting.optional && errors.Is(err, os.ErrNotExist) {
				continue
			}
			return fmt.Errorf("set %s=%s: %w", strings.ReplaceAll(setting.name, "/", "."), setting.value, err)
		}
	}
	return nil
}
