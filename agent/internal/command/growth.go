// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// growth says when maps are replaced by larger ones, and how large they may get.
type growth struct {
	at     uint32 // percent of a map's entries; 0: never
	limits struct{ frontends, backends, routes, ids uint32 }
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
