// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newDiff() *cobra.Command {
	return &cobra.Command{
		Use:   "diff",
		Short: "Compare what should be in the kernel with what is (agent)",
		Long: `Compare what should be in the kernel with what is.

Exits with status 1 if anything differs.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.diff(cmd) },
	}
}

func (a *App) diff(cmd *cobra.Command) error {
	differences, err := listAgent(a, cmd, "comparing", agentv1.AgentServiceClient.DiffDesired, &agentv1.DiffDesiredRequest{})
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		err = printList(a, differences)
	} else {
		err = a.printTable(differenceTable(differences), "differences")
	}
	if err == nil && len(differences) > 0 {
		err = fmt.Errorf("the kernel differs from what it should hold in %s; `millracectl repair` mends that",
			plural(len(differences), "entry"))
	}
	return err
}

func differenceTable(differences []*agentv1.DiffDesiredResponse) *table {
	t := &table{header: []string{"OBJECT", "KEY", "DESIRED", "ACTUAL"}}
	for _, d := range differences {
		t.row(d.GetObject(), d.GetKey(), d.GetDesired(), d.GetActual())
	}
	return t
}

func (a *App) newRepair() *cobra.Command {
	return &cobra.Command{
		Use:   "repair",
		Short: "Make the kernel hold what it should (agent)",
		Long: `Make the kernel hold what it should, and tell what was mended.

Exits with status 1 if a difference remains.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.repair(cmd) },
	}
}

func (a *App) repair(cmd *cobra.Command) error {
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	answer, err := s.agent().Repair(s.ctx, &agentv1.RepairRequest{})
	if err != nil {
		return rpcError("repairing", s.target, err)
	}
	remaining := answer.GetRemaining()
	if a.output.forProgram() {
		err = a.printMessage(answer)
	} else {
		fmt.Fprintf(a.Stdout, "%s mended, %d remaining\n", plural(int(answer.GetRepaired()), "difference"), len(remaining))
		if len(remaining) > 0 {
			err = differenceTable(remaining).print(a.Stdout)
		}
	}
	if err == nil && len(remaining) > 0 {
		err = fmt.Errorf("%s could not be mended", plural(len(remaining), "difference"))
	}
	return err
}
