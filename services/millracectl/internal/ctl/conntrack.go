// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newConntrack() *cobra.Command {
	var request agentv1.ListConntrackRequest
	cmd := &cobra.Command{
		Use:   "conntrack",
		Short: "List the tracked flows (agent)",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.conntrack(cmd, &request)
		},
	}
	selectionFlags(cmd, &request.Address, "only flows that touch this address",
		&request.Service, "only flows of this service, NAMESPACE/NAME")
	return cmd
}

func (a *App) conntrack(cmd *cobra.Command, request *agentv1.ListConntrackRequest) error {
	flows, err := listAgent(a, cmd, "listing flows", agentv1.AgentServiceClient.ListConntrack, request)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, flows)
	}
	t := a.table([]string{"PROTOCOL", "STATE", "CLIENT", "FRONTEND", "BACKEND", "SOURCE", "EXPIRES", "SERVICE"},
		"FAMILY", "FLAGS")
	for _, f := range flows {
		t.row(protocol(f.GetProtocol()), f.GetState(), f.GetClient(), f.GetFrontend(), f.GetBackend(),
			f.GetSource(), duration(f.GetExpires()), f.GetService(),
			fmt.Sprintf("IPv%d", f.GetFamily()), strings.Join(f.GetFlags(), ","))
	}
	return a.printTable(t, "flows")
}

// selectionFlags adds the flags by which flows and clients are selected, and
// has them checked before the command runs.
func selectionFlags(cmd *cobra.Command, address *string, addressUsage string, service *string, serviceUsage string) {
	cmd.Flags().StringVar(address, "address", "", addressUsage)
	cmd.Flags().StringVar(service, "service", "", serviceUsage)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *address != "" {
			if _, err := netip.ParseAddr(*address); err != nil {
				return usagef("invalid --address %q; allowed is an IPv4 or IPv6 address", *address)
			}
		}
		if *service != "" && strings.Count(*service, "/") != 1 {
			return usagef("invalid --service %q; allowed is NAMESPACE/NAME", *service)
		}
		return nil
	}
}
