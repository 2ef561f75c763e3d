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
	cmd.Flags().StringVar(&request.Address, "address", "", "only clients with, or backends at, this address")
	cmd.Flags().StringVar(&request.Service, "service", "", "only of this service, NAMESPACE/NAME")
	return cmd
}

func (a *App) affinity(cmd *cobra.Command, request *agentv1.ListAffinitiesRequest) error {
	if err := checkSelection(request); err != nil {
		return err
	}
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	stream, err := s.agent().ListAffinities(s.ctx, request)
	clients, err := collect(s, "listing clients", stream, err)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, clients)
	}
	header := []string{"CLIENT", "SERVICE", "PORT NAME", "BACKEND", "USABLE", "IDLE", "EXPIRES"}
	if a.output.wide() {
		header = append(header, "FAMILY")
	}
	t := &table{header: header}
	for _, c := range clients {
		cells := []string{
			clientName(c), c.GetService(), c.GetPortName(), c.GetBackend(), yesNo(c.GetUsable()),
			duration(c.GetIdle()), duration(c.GetExpires()),
		}
		if a.output.wide() {
			cells = append(cells, fmt.Sprintf("IPv%d", c.GetFamily()))
		}
		t.row(cells...)
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
