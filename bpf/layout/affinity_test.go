// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"net/netip"
	"testing"
	"time"
)

func TestAffinityKeys(t *testing.T) {
	if k, ok := NewAffinityKey[V4](netip.MustParseAddr("::ffff:10.0.0.1"), 7); !ok || k.Client != (V4{10, 0, 0, 1}) || k.Cookie() != 0 {
		t.Errorf("v4-mapped address: %v %v", k, ok)
	}
	if _, ok := NewAffinityKey[V4](netip.MustParseAddr("fd00::1"), 7); ok {
		t.Error("IPv6 address accepted as IPv4")
	}
	const cookie = 1<<40 | 77
	if k := NewSocketAffinityKey[V6](cookie, 7); k.Cookie() != cookie || k.Client != (V6{}) {
		t.Errorf("cookie %d", k.Cookie())
	}
}

func TestAffinityAge(t *testing.T) {
	const week = 7 * 24 * time.Hour
	for _, c := range []struct{ used, now, want time.Duration }{
		{week, week, 0},
		{week, week + time.Hour, time.Hour},
		{week + time.Second, week, 0}, // another processor's clock was ahead
		// Over the end of the ticks.
		{1<<56 - time.Hour, 1<<56 + time.Hour, 2 * time.Hour},
	} {
		a := AffinityV4{Used: AffinityTick(c.used)}
		if got := a.Age(c.now); (got - c.want).Abs() > 20*time.Millisecond {
			t.Errorf("used at %s, now %s: age %s", c.used, c.now, got)
		}
	}
}
