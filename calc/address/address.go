// SPDX-License-Identifier: Apache-2.0

// Package address reads IP addresses and prefixes as Kubernetes objects hold
// them, and tells what is wrong with those that cannot be used.
package address

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Parse reads an address as the Kubernetes API reads it: an IPv4 address may
// have leading zeros, which do not make it octal, and an IPv4-mapped IPv6
// address is that IPv4 address. Addresses with a zone are refused.
func Parse(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		addr, err = netip.ParseAddr(trimZeros(text))
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address", text)
	}
	if addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q has a zone, which has no meaning across nodes", text)
	}
	return addr.Unmap(), nil
}

// trimZeros strips leading zeros from the parts of a dotted quad. Objects
// stored by old versions of Kubernetes may have them.
func trimZeros(text string) string {
	parts := strings.Split(text, ".")
	if len(parts) != 4 {
		return text
	}
	for i, part := range parts {
		for len(part) > 1 && part[0] == '0' {
			part = part[1:]
		}
		parts[i] = part
	}
	return strings.Join(parts, ".")
}

// ParseUnicast reads an address that something can be reached by from another
// host: not unspecified, loopback or multicast.
func ParseUnicast(text string) (netip.Addr, error) {
	addr, err := Parse(text)
	if err != nil {
		return netip.Addr{}, err
	}
	switch {
	case addr.IsUnspecified():
		return netip.Addr{}, fmt.Errorf("%s is the unspecified address", addr)
	case addr.IsLoopback():
		return netip.Addr{}, fmt.Errorf("%s is a loopback address", addr)
	case addr.IsMulticast():
		return netip.Addr{}, fmt.Errorf("%s is a multicast address", addr)
	case addr.Is4() && addr.As4() == [4]byte{255, 255, 255, 255}:
		return netip.Addr{}, errors.New("255.255.255.255 is the broadcast address")
	}
	return addr, nil
}

// ParsePrefix reads a prefix; host bits are cleared.
func ParsePrefix(text string) (netip.Prefix, error) {
	invalid := fmt.Errorf("%q is not an IP prefix", text)
	host, length, ok := strings.Cut(text, "/")
	if !ok {
		return netip.Prefix{}, invalid
	}
	prefix, err := netip.ParsePrefix(trimZeros(host) + "/" + length)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, invalid
	}
	return prefix.Masked(), nil
}

// Family names the family of an address as Kubernetes does: "IPv4" or "IPv6".
func Family(addr netip.Addr) string {
	if addr.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
