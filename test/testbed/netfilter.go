// SPDX-License-Identifier: Apache-2.0

package testbed

import "fmt"

// masquerade installs what CNI plugins with ipMasq do: what pods send out of
// the cluster leaves with the node's address.
func (n *Node) masquerade() error {
	return n.Nft(fmt.Sprintf(`
table ip testbed {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %s ip daddr != %s oifname "eth0" counter masquerade
	}
}
table ip6 testbed {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip6 saddr %s ip6 daddr != %s oifname "eth0" counter masquerade
	}
}`, n.PodCIDRv4, ClusterCIDRv4, n.PodCIDRv6, ClusterCIDRv6))
}

// HostPort installs what the CNI portmap plugin does: a port of the node's
// own addresses leads to a port of a pod.
func (n *Node) HostPort(protocol string, port int, pod *Pod, podPort int) error {
	return n.Nft(fmt.Sprintf(`
table ip testbed_hostport {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr %[2]s %[1]s dport %[3]d counter dnat to %[4]s:%[6]d
	}
}
table ip6 testbed_hostport {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip6 daddr %[7]s %[1]s dport %[3]d counter dnat to [%[5]s]:%[6]d
	}
}`, protocol, n.IPv4, port, pod.IPv4, pod.IPv6, podPort, n.IPv6))
}
