// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// growth says when maps are replaced by larger ones, and how large they may get.
type growth struct {
	at     uint32 // percent of a map's entries; 0: never
	limits struct{ frontends, backends, routes, ids, embryonic, established uint32 }
}

func (g *growth) register(flags *pflag.FlagSet) {
	flags.Uint32Var(&g.at, "grow-at", 80, "percent of its entries at which a map is replaced by one of twice the size; 0 for never")
	limit := func(p *uint32, name, what string, value uint32) {
		flags.Uint32Var(p, name, value, "size up to which the map of "+what+" grows; below the size it has: no growth")
	}
	limit(&g.limits.frontends, "limit-frontends", "frontends, per family", mbpf.LimitFrontends)
	limit(&g.limits.backends, "limit-backends", "backends, per family", mbpf.LimitBackends)
	limit(&g.limits.routes, "limit-routes", "routes, per family", mbpf.LimitRoutes)
	limit(&g.limits.ids, "limit-ids", "numbers of service ports", mbpf.LimitIDs)
	limit(&g.limits.embryonic, "limit-embryonic", "flows being opened, per family", mbpf.LimitEmbryonic)
	flags.Uint32Var(&g.limits.established, "limit-established", 0, "size up to which the map of established flows grows, per family; below the size it has: no growth; 0 for what fits into 1/32 of the memory")
}

func (g *growth) check() error {
	if g.at > 100 {
		return fmt.Errorf("--grow-at: %d must be a percentage from 0 to 100", g.at)
	}
	return nil
}

// policy returns when tables grow and how far.
func (g *growth) policy() bpf.GrowthPolicy {
	return bpf.GrowthPolicy{Percent: g.at, Limits: map[string]uint32{
		"frontends_v4": g.limits.frontends, "frontends_v6": g.limits.frontends,
		"backends_v4": g.limits.backends, "backends_v6": g.limits.backends,
		"routes_v4": g.limits.routes, "routes_v6": g.limits.routes,
		"ids": g.limits.ids,
	}}
}

// conntrackPolicy returns when the maps of flows grow and how far; sizes are what
// they are to have at least.
func (g *growth) conntrackPolicy(embryonic, established uint32) conntrack.Policy {
	p := conntrack.Policy{Percent: g.at, Sizes: map[string]uint32{}, Limits: map[string]uint32{}}
	for _, family := range []int{4, 6} {
		limit := g.limits.established
		if limit == 0 {
			limit = mbpf.LimitEstablished(family)
		}
		name := fmt.Sprintf("established_v%d", family)
		p.Sizes[name], p.Limits[name] = established, limit
		name = fmt.Sprintf("embryonic_v%d", family)
		p.Sizes[name], p.Limits[name] = embryonic, g.limits.embryonic
	}
	return p
}
