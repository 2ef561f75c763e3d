// SPDX-License-Identifier: Apache-2.0

// Package announcement is the form in which calculators announce where they
// are and whom agents are to trust as one: two texts, kept in a ConfigMap. Calculators
// write and read it, and agents read the files that it is mounted as.
package announcement

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Keys of the ConfigMap, and so names of the files that it is mounted as.
const (
	// CalculatorsKey has addresses.
	CalculatorsKey = "calculators"
	// AuthoritiesKey has certificates.
	AuthoritiesKey = "ca.crt"
)

// ServerName is what the certificate of every calculator is for, whatever
// address it is dialled at.
const ServerName = "millrace-calculator"

// Limits of what is taken from an announcement: what is beyond them is left out
// and named. They are far above what a cluster needs, and bound what a mistake
// costs every agent.
const (
	MaxAddresses   = 128
	MaxAuthorities = 32
)

// Bad is a part of an announcement that cannot be used.
type Bad struct {
	// Part is what of the text: "line 3", "certificate 2".
	Part string
	// Message says what is wrong with it.
	Message string
}

// String gives both.
func (b Bad) String() string { return b.Part + ": " + b.Message }

// ParseAddresses reads addresses, each HOST:PORT on a line of its own, in a
// form in which equal ones are equal. Empty lines, and what follows a #, count
// for nothing.
func ParseAddresses(text string) (addresses []string, bad []Bad) {
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		part := fmt.Sprintf("line %d", i+1)
		address, err := ParseAddress(line)
		switch {
		case err != nil:
			bad = append(bad, Bad{part, err.Error()})
		case slices.Contains(addresses, address):
		case len(addresses) == MaxAddresses:
			return addresses, append(bad, Bad{part, fmt.Sprintf("more than %d addresses; this and all after it are left out", MaxAddresses)})
		default:
			addresses = append(addresses, address)
		}
	}
	return addresses, bad
}

// ParseAddress reads HOST:PORT with an IP address or a DNS name.
func ParseAddress(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return "", fmt.Errorf("%q is not HOST:PORT", text)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", fmt.Errorf("%q is not HOST:PORT with a port from 1 to 65535", text)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap()
		if addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "" {
			return "", fmt.Errorf("%q is no address that a calculator can be dialled at", text)
		}
		host = addr.String()
	} else if !isDNSName(host) {
		return "", fmt.Errorf("%q has neither an IP address nor a DNS name before its port", text)
	}
	return net.JoinHostPort(host, strconv.FormatUint(number, 10)), nil
}

func isDNSName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for _, label := range strings.Split(strings.TrimSuffix(name, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// FormatAddresses writes what ParseAddresses reads.
func FormatAddresses(addresses []string) string {
	if len(addresses) == 0 {
		return ""
	}
	return strings.Join(addresses, "\n") + "\n"
}

// ParseAuthorities reads certificates of authorities, PEM. Text between them
// counts for nothing.
func ParseAuthorities(text []byte) (authorities []*x509.Certificate, bad []Bad) {
	rest := text
	for i := 1; ; i++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(authorities) == 0 && len(bad) == 0 && len(bytes.TrimSpace(text)) > 0 {
				bad = append(bad, Bad{"certificate 1", "the text has no certificate in PEM form"})
			}
			return authorities, bad
		}
		part := fmt.Sprintf("certificate %d", i)
		if block.Type != "CERTIFICATE" {
			bad = append(bad, Bad{part, fmt.Sprintf("is a %q, not a CERTIFICATE", block.Type)})
			continue
		}
		certificate, err := ParseAuthority(block.Bytes)
		switch {
		case err != nil:
			bad = append(bad, Bad{part, err.Error()})
		case slices.ContainsFunc(authorities, certificate.Equal):
		case len(authorities) == MaxAuthorities:
			return authorities, append(bad, Bad{part, fmt.Sprintf("more than %d certificates; this and all after it are left out", MaxAuthorities)})
		default:
			authorities = append(authorities, certificate)
		}
	}
}

// ParseAuthority reads an authority's certificate, DER.
func ParseAuthority(der []byte) (*x509.Certificate, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("is no certificate: %w", err)
	}
	if !certificate.IsCA {
		return nil, fmt.Errorf("%q is no authority's certificate, so that no other can come from it", certificate.Subject)
	}
	return certificate, nil
}

// FormatAuthorities writes what ParseAuthorities reads.
func FormatAuthorities(authorities []*x509.Certificate) []byte {
	var text []byte
	for _, certificate := range authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})...)
	}
	return text
}

// Fingerprint tells certificates apart: the SHA-256 of its DER form, as
// `openssl x509 -fingerprint -sha256` has it, in lower case and without colons.
func Fingerprint(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// AgentServerName is what the API of a node's agent calls itself in the
// certificate that calculators sign. It is below a name of its own, so that no
// node's name can make it a calculator's.
func AgentServerName(node string) string { return node + ".agent.millrace" }
