// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
)

// singly makes every call that writes several entries write them one at a time
// and in any order, since that is all that a batch promises, and looks at the
// kernel after each.
type singly struct {
	*tables.Kernel
	random *rand.Rand
	// written is called after every single write with the map's name.
	written func(table string)
	writes  int
	// failing is how many of a hundred writes fail.
	failing, failed int
}

var errInjected = fmt.Errorf("injected: %w", unix.EPERM)

var _ Tables = (*singly)(nil)

// each does one write after another.
func each[E any](s *singly, table string, entries []E, write func([]E) error) error {
	for _, i := range s.random.Perm(len(entries)) {
		if s.random.IntN(100) < s.failing {
			s.failed++
			return errInjected
		}
		if err := write(entries[i : i+1]); err != nil {
			return err
		}
		s.writes++
		s.written(table)
	}
	return nil
}

func (s *singly) PutFrontends(f tables.Family, entries []tables.FrontendEntry) error {
	return each(s, "frontends", entries, func(one []tables.FrontendEntry) error { return s.Kernel.PutFrontends(f, one) })
}

func (s *singly) DeleteFrontends(f tables.Family, keys []tables.FrontendKey) error {
	return each(s, "frontends", keys, func(one []tables.FrontendKey) error { return s.Kernel.DeleteFrontends(f, one) })
}

func (s *singly) PutBackends(f tables.Family, writes []tables.BackendWrite) error {
	var elements []tables.BackendWrite
	for _, w := range writes {
		for i := range w.Backends {
			elements = append(elements, tables.BackendWrite{First: w.First + uint32(i), Backends: w.Backends[i : i+1]})
		}
	}
	return each(s, "backends", elements, func(one []tables.BackendWrite) error { return s.Kernel.PutBackends(f, one) })
}

func (s *singly) PutIDs(entries []tables.IDEntry) error {
	return each(s, "ids", entries, s.Kernel.PutIDs)
}

func (s *singly) DeleteIDs(keys []tables.IDKey) error {
	return each(s, "ids", keys, s.Kernel.DeleteIDs)
}

func (s *singly) PutRoutes(f tables.Family, entries []tables.RouteEntry) error {
	return each(s, "routes", entries, func(one []tables.RouteEntry) error { return s.Kernel.PutRoutes(f, one) })
}

func (s *singly) DeleteRoutes(f tables.Family, keys []tables.RouteKey) error {
	return each(s, "routes", keys, func(one []tables.RouteKey) error { return s.Kernel.DeleteRoutes(f, one) })
}

func (s *singly) WriteConfig(c layout.Config) error {
	return each(s, "config", []layout.Config{c}, func(one []layout.Config) error { return s.Kernel.WriteConfig(one[0]) })
}
