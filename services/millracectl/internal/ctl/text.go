// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// since prints a time of a server as an age, rounded as people read it.
func (a *App) since(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	age := a.Now().Sub(t.AsTime())
	switch {
	case age < 0:
		return "0s" // clocks differ
	case age < time.Minute:
		return age.Round(time.Second).String()
	case age < time.Hour:
		return fmt.Sprintf("%dm%ds", int(age.Minutes()), int(age.Seconds())%60)
	case age < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(age.Hours()), int(age.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%dh", int(age.Hours())/24, int(age.Hours())%24)
	}
}

func duration(d *durationpb.Duration) string {
	if d == nil {
		return ""
	}
	v := d.AsDuration()
	switch {
	case v >= time.Minute:
		return v.Round(time.Second).String()
	case v >= time.Second:
		return v.Round(100 * time.Millisecond).String()
	default:
		return v.Round(10 * time.Microsecond).String()
	}
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// counts prints a map of counters in name order; resource types by the words
// that --type takes, whether a server names them with or without the prefix.
func counts(m map[string]uint64) string {
	parts := make([]string, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		word := name
		if value, ok := dataplanev1.ResourceType_value["RESOURCE_TYPE_"+strings.TrimPrefix(name, "RESOURCE_TYPE_")]; ok {
			word = resourceType(dataplanev1.ResourceType(value))
		}
		parts = append(parts, word+"="+number(m[name]))
	}
	return strings.Join(parts, " ")
}

func mode(m dataplanev1.DataplaneMode) string {
	return enumWord(m.String(), "DATAPLANE_MODE_", "default")
}

func protocol(p dataplanev1.Protocol) string {
	return strings.ToUpper(enumWord(p.String(), "PROTOCOL_", "any"))
}

func resourceType(t dataplanev1.ResourceType) string {
	return strings.ReplaceAll(enumWord(t.String(), "RESOURCE_TYPE_", "unspecified"), "_", "-")
}

// enumWord takes the type's name off a value's, in lower case.
func enumWord(name, prefix, unspecified string) string {
	word, ok := strings.CutPrefix(name, prefix)
	if ok && word == "UNSPECIFIED" {
		return unspecified
	}
	return strings.ToLower(word)
}

// address prints an address from the stream, or its bytes if it is none.
func address(b []byte) string {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return fmt.Sprintf("%x", b)
	}
	return addr.String()
}

func addresses(list [][]byte) string {
	texts := make([]string, 0, len(list))
	for _, b := range list {
		texts = append(texts, address(b))
	}
	return strings.Join(texts, ",")
}

// hostPort joins a textual address and a port.
func hostPort(host string, port uint32) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.FormatUint(uint64(port), 10)
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	if strings.HasSuffix(one, "y") {
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(one, "y"))
	}
	return fmt.Sprintf("%d %ss", n, one)
}
