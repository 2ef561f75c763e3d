// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"math"
	"strconv"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newMaps() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "maps",
		Short: "List the BPF maps with their size and fill (agent)",
		Args:  subcommandRequired,
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.maps(cmd) },
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "dump NAME",
		Short:             "Print the decoded entries of one map",
		Args:              exactly("NAME"),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.dumpMap(cmd, args[0]) },
		ValidArgsFunction: a.completeMaps,
	})
	cmd.AddCommand(&cobra.Command{
		Use:   "grow NAME ENTRIES",
		Short: "Replace a map by one with room for more entries, under traffic",
		Long: `Replace a map by one with room for more entries, under traffic.

The limit up to which the agent lets maps grow by itself does not apply. Entries
of flows (embryonic_*, established_*) move to the larger map afterwards; while
they do, "millracectl maps" lists the smaller one as NAME-draining.`,
		Args:              exactly("NAME", "ENTRIES"),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.growMap(cmd, args[0], args[1]) },
		ValidArgsFunction: a.completeMaps,
	})
	return cmd
}

func (a *App) growMap(cmd *cobra.Command, name, size string) error {
	entries, err := strconv.ParseUint(size, 10, 32)
	if err != nil || entries == 0 {
		return usagef("ENTRIES: %q must be a whole number from 1 to %d", size, uint32(math.MaxUint32))
	}
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	answer, err := s.agent().GrowMap(s.ctx, &agentv1.GrowMapRequest{Name: name, MaxEntries: uint32(entries)})
	if err != nil {
		return rpcError(fmt.Sprintf("growing map %q", name), s.target, err)
	}
	if a.output.forProgram() {
		return a.printMessage(answer)
	}
	fmt.Fprintf(a.Stdout, "%s: %s entries, %s before\n", name, number(entries), number(uint64(answer.GetPreviousMaxEntries())))
	return nil
}

func (a *App) listMaps(cmd *cobra.Command) (*agentv1.ListMapsResponse, error) {
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	answer, err := s.agent().ListMaps(s.ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return nil, rpcError("listing maps", s.target, err)
	}
	return answer, nil
}

func (a *App) maps(cmd *cobra.Command) error {
	answer, err := a.listMaps(cmd)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return a.printMessage(answer)
	}
	t := a.table([]string{"NAME", "TYPE", "ENTRIES", "MAX", "FILL"},
		"KEY BYTES", "VALUE BYTES", "PIN")
	for _, m := range answer.GetMaps() {
		t.row(m.GetName(), m.GetType(), number(uint64(m.GetEntries())), number(uint64(m.GetMaxEntries())), fill(m),
			number(uint64(m.GetKeySize())), number(uint64(m.GetValueSize())), m.GetPinPath())
	}
	return a.printTable(t, "maps")
}

func fill(m *agentv1.MapState) string {
	if m.GetMaxEntries() == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %%", 100*float64(m.GetEntries())/float64(m.GetMaxEntries()))
}

func (a *App) dumpMap(cmd *cobra.Command, name string) error {
	entries, err := listAgent(a, cmd, fmt.Sprintf("dumping map %q", name), agentv1.AgentServiceClient.DumpMap, &agentv1.DumpMapRequest{Name: name})
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, entries)
	}
	t := &table{header: []string{"KEY", "VALUE"}}
	for _, e := range entries {
		t.row(e.GetKey(), e.GetValue())
	}
	return a.printTable(t, "entries")
}

func (a *App) completeMaps(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	answer, err := a.listMaps(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range answer.GetMaps() {
		names = append(names, m.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
