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
	cmd.Flags().StringVar(&request.Address, "address", "", "only flows that touch this address")
	cmd.Flags().StringVar(&request.Service, "service", "", "only flows of this service, NAMESPACE/NAME")
	return cmd
}

func (a *App) conntrack(cmd *cobra.Command, request *agentv1.ListConntrackRequest) error {
	if err := checkSelection(request); err != nil {
		return err
	}
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	stream, err := s.agent().ListConntrack(s.ctx, request)
	flows, err := collect(s, "listing flows", stream, err)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, flows)
	}
	header := []string{"PROTOCOL", "STATE", "CLIENT", "FRONTEND", "BACKEND", "SOURCE", "EXPIRES", "SERVICE"}
	if a.output.wide() {
		header = append(header, "FAMILY", "FLAGS")
	}
	t := &table{header: header}
	for _, f := range flows {
		cells := []string{
			protocol(f.GetProtocol()), f.GetState(), f.GetClient(), f.GetFrontend(), f.GetBackend(),
			f.GetSource(), duration(f.GetExpires()), f.GetService(),
		}
		if a.output.wide() {
			cells = append(cells, fmt.Sprintf("IPv%d", f.GetFamily()), strings.Join(f.GetFlags(), ","))
		}
		t.row(cells...)
	}
	return a.printTable(t, "flows")
}

// checkSelection checks the flags by which flows and clients are selected.
func checkSelection(request interface {
	GetAddress() string
	GetService() string
}) error {
	if request.GetAddress() != "" {
		if _, err := netip.ParseAddr(request.GetAddress()); err != nil {
			return usagef("invalid --address %q; allowed is an IPv4 or IPv6 address", request.GetAddress())
		}
	}
	if svc := request.GetService(); svc != "" && strings.Count(svc, "/") != 1 {
		return usagef("invalid --service %q; allowed is NAMESPACE/NAME", svc)
	}
	return nil
}
