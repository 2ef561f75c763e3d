// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"net"
	"slices"
)

// mostAddresses bounds how many addresses a certificate names.
const mostAddresses = 32

// dialledAt gives the addresses that a calculator can be dialled at, for its
// certificate: those of its network, if the host that it listens on is all.
func dialledAt(host string) func() []net.IP {
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return func() []net.IP { return []net.IP{ip} }
	}
	return func() []net.IP {
		list := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
		found, err := net.InterfaceAddrs()
		if err != nil {
			return list // the name that agents expect is in the certificate anyway
		}
		var own []net.IP
		for _, address := range found {
			if prefix, ok := address.(*net.IPNet); ok && prefix.IP.IsGlobalUnicast() {
				own = append(own, prefix.IP)
			}
		}
		slices.SortFunc(own, func(a, b net.IP) int { return bytes.Compare(a.To16(), b.To16()) })
		own = slices.CompactFunc(own, net.IP.Equal)
		return append(list, own[:min(len(own), mostAddresses)]...)
	}
}
