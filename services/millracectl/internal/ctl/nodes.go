// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func (a *App) newNodes() *cobra.Command {
	return &cobra.Command{
		Use:   "nodes",
		Short: "List the cluster's nodes with what each has programmed (calculator)",
		Long: `List the cluster's nodes with what each has programmed, as the calculator knows.

A node is listed as connected if its agent is connected to the calculator that
was asked; with several calculators each serves a part of the nodes. Errors and
problems that agents reported follow the table.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.nodes(cmd) },
	}
}

func (a *App) nodes(cmd *cobra.Command) error {
	answer, err := a.listNodes(cmd)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return a.printMessage(answer)
	}
	t := a.table([]string{"NODE", "CONNECTED", "IN SYNC", "PROGRAMMED", "SENT", "LAG", "LATENCY", "ERRORS"},
		"MODE", "VERSION", "PEER", "FOR", "ENDPOINTS")
	errs := &table{header: []string{"NODE", "TYPE", "KEY", "FIELD", "REASON", "MESSAGE"}}
	problems := &table{header: []string{"NODE", "PROBLEM"}}
	for _, n := range answer.GetNodes() {
		t.row(n.GetName(), yesNo(n.GetConnected()), yesNo(n.GetInSync()),
			number(n.GetAck().GetProgrammedRevision()), number(n.GetSentRevision()), lag(n),
			duration(n.GetLastLatency()), nodeErrors(n.GetAck()),
			mode(n.GetDataplaneMode()), n.GetAgentVersion(), n.GetPeerAddress(),
			a.since(n.GetConnectTime()), number(uint64(len(n.GetReport().GetAttachedEndpoints()))))
		for _, e := range n.GetAck().GetErrors() {
			errs.row(n.GetName(), resourceType(e.GetName().GetType()), e.GetName().GetKey(), e.GetField(), e.GetReason(), e.GetMessage())
		}
		for _, p := range n.GetReport().GetProblems() {
			problems.row(n.GetName(), p)
		}
		for _, m := range n.GetEndpointMismatches() {
			problems.row(n.GetName(), fmt.Sprintf("the node has pod %s with UID %s: %s", m.GetPod(), m.GetUid(), m.GetMessage()))
		}
	}
	if err := a.printTable(t, "nodes"); err != nil {
		return err
	}
	for _, more := range []*table{errs, problems} {
		if len(more.rows) == 0 {
			continue
		}
		fmt.Fprintln(a.Stdout)
		if err := more.print(a.Stdout); err != nil {
			return err
		}
	}
	return nil
}

func (a *App) listNodes(cmd *cobra.Command) (*calculatorv1.ListNodesResponse, error) {
	s, err := a.dialCalculator(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	answer, err := s.calculator().ListNodes(s.ctx, &calculatorv1.ListNodesRequest{})
	if err != nil {
		return nil, rpcError("listing nodes", s.target, err)
	}
	return answer, nil
}

// lag tells how far a node is behind, which says nothing of one that has never
// had an agent.
func lag(n *calculatorv1.NodeState) string {
	if !n.GetConnected() && n.GetConnectTime() == nil {
		return "-"
	}
	return number(n.GetLag())
}

// nodeErrors counts what a node fails to program, and since which revision.
func nodeErrors(ack *dataplanev1.Ack) string {
	if ack.GetErrorCount() == 0 {
		return "0"
	}
	return fmt.Sprintf("%d since revision %d", ack.GetErrorCount(), ack.GetLowestFailedRevision())
}
