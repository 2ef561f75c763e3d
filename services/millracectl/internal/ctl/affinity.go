// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newAffinity() *cobra.Command {
	var request agentv1.ListAffinitiesRequest
	cmd := &cobra.Command{
		Use:   "affinity",
		Short: "List the clients that keep a backend, of services with session affinity (agent)",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.affinity(cmd, &request)
		},
	}
	selectionFlags(cmd, &request.Address, "only clients with, or backends at, this address",
		&request.Service, "only of this service, NAMESPACE/NAME")
	return cmd
}

func (a *App) affinity(cmd *cobra.Command, request *agentv1.ListAffinitiesRequest) error {
	clients, err := listAgent(a, cmd, "listing clients", agentv1.AgentServiceClient.ListAffinities, request)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, clients)
	}
	t := a.table([]string{"CLIENT", "SERVICE", "PORT NAME", "BACKEND", "USABLE", "IDLE", "EXPIRES"}, "FAMILY")
	for _, c := range clients {
		t.row(clientName(c), c.GetService(), c.GetPortName(), c.GetBackend(), yesNo(c.GetUsable()),
			duration(c.GetIdle()), duration(c.GetExpires()), fmt.Sprintf("IPv%d", c.GetFamily()))
	}
	return a.printTable(t, "clients")
}

// clientName is the address of a client, or whose sockets it stands for.
func clientName(c *agentv1.ListAffinitiesResponse) string {
	switch {
	case c.GetHost():
		return "host"
	case c.GetNetnsCookie() != 0:
		return fmt.Sprintf("netns %d", c.GetNetnsCookie())
	}
	return c.GetClient()
}
