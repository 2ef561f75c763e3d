// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strconv"
)

// portOf is the port of an address to listen on.
func portOf(listen string) (uint16, error) {
	_, text, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, fmt.Errorf("--listen: %w", err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("--listen: %q has no port that could be announced to agents", listen)
	}
	return uint16(port), nil
}

// mostAddresses bounds how many addresses a certificate names.
const mostAddresses = 32

// dialledAt gives the addresses that a calculator can be dialled at, for its
// certificate: those of its network, if it listens on all.
func dialledAt(listen string) func() []net.IP {
	host, _, _ := net.SplitHostPort(listen) // checked before
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
