// SPDX-License-Identifier: Apache-2.0

package address_test

import (
	"testing"

	"github.com/millrace-project/millrace/calc/address"
)

func TestParseUnicast(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10.0.0.1":         "10.0.0.1",
		"010.000.00.01":    "10.0.0.1",
		"::ffff:10.0.0.1":  "10.0.0.1",
		"FD00::01":         "fd00::1",
		"169.254.1.1":      "169.254.1.1",
		"":                 "",
		"10.0.0":           "",
		"10.0.0.256":       "",
		"0x0a.0.0.1":       "",
		"10.0.0.1/32":      "",
		" 10.0.0.1":        "",
		"fe80::1%eth0":     "",
		"0.0.0.0":          "",
		"::":               "",
		"127.0.0.1":        "",
		"::1":              "",
		"::ffff:127.0.0.1": "",
		"224.0.0.1":        "",
		"ff02::1":          "",
		"255.255.255.255":  "",
	} {
		addr, err := address.ParseUnicast(text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken as %s", text, addr)
		case want != "" && (err != nil || addr.String() != want):
			t.Errorf("%q gives %s, %v; want %s", text, addr, err, want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"10.1.2.3/16":       "10.1.0.0/16",
		"010.001.0.0/16":    "10.1.0.0/16",
		"fd00::1/64":        "fd00::/64",
		"0.0.0.0/0":         "0.0.0.0/0",
		"10.1.2.3":          "",
		"10.1.2.3/33":       "",
		"10.1.2.3/-1":       "",
		"::ffff:1.2.3.4/96": "",
		"fe80::%eth0/64":    "",
		"/":                 "",
	} {
		prefix, err := address.ParsePrefix(text)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken as %s", text, prefix)
		case want != "" && (err != nil || prefix.String() != want):
			t.Errorf("%q gives %s, %v; want %s", text, prefix, err, want)
		}
	}
}
