// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// backendKey is a backend of a service.
type backendKey struct {
	service string
	backend netip.AddrPort
}

// presence is a time in which a backend belonged to a service. Left and gone
// are zero until it leaves and is gone.
type presence struct{ from, left, gone time.Time }

// backendTimes knows when which backend belonged to which service.
type backendTimes struct {
	mu       sync.Mutex
	presence map[backendKey][]presence
}

func newBackendTimes(load Load) *backendTimes {
	t := &backendTimes{presence: map[backendKey][]presence{}}
	for service, backends := range load.Backends {
		for _, backend := range backends {
			t.presence[backendKey{service, backend}] = []presence{{from: time.Now()}}
		}
	}
	return t
}

func (t *backendTimes) change(change BackendChange) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, now := backendKey{change.Service, change.Backend}, time.Now()
	all := t.presence[key]
	last := len(all) - 1
	there := last >= 0 && all[last].gone.IsZero()
	switch {
	case change.State == Serving && !there:
		t.presence[key] = append(all, presence{from: now})
	case change.State == Serving:
		all[last].left = time.Time{}
	case change.State == Leaving && there:
		all[last].left = now
	case change.State == Gone && there:
		if all[last].left.IsZero() {
			all[last].left = now
		}
		all[last].gone = now
	default:
		return fmt.Errorf("backend %s of %s cannot be %s now", change.Backend, change.Service, change.State)
	}
	return nil
}

// valid tells whether the backend belonged to the service at some moment since
// begin.
func (t *backendTimes) valid(service string, backend netip.AddrPort, begin time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.presence[backendKey{service, backend}] {
		if p.gone.IsZero() || p.gone.After(begin) {
			return true
		}
	}
	return false
}

// leaving tells whether some backend of the service was leaving at some moment
// between begin and end.
func (t *backendTimes) leaving(service string, begin, end time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, all := range t.presence {
		if key.service != service {
			continue
		}
		for _, p := range all {
			if !p.left.IsZero() && p.left.Before(end) && (p.gone.IsZero() || p.gone.After(begin)) {
				return true
			}
		}
	}
	return false
}
