// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func (a *App) newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show how the agent, the calculator or both are, and what is wrong",
		Long: `Show how the agent, the calculator or both are, and what is wrong.

Asks every server that an address is given for, and the agent at its default
address if none is. With -o wide the agent's attachments, devices and kernel
features are listed too. Fails if a server does not answer.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.status(cmd) },
	}
}

// status asks every server that is meant and prints those that answered even
// if another did not.
func (a *App) status(cmd *cobra.Command) error {
	var (
		agent *agentv1.GetStatusResponse
		calc  *calculatorv1.GetStatusResponse
		errs  []error
	)
	if a.asksAgent() {
		var err error
		if agent, err = a.agentStatus(cmd); err != nil {
			errs = append(errs, err)
		}
	}
	if a.connection.calculator != "" {
		var err error
		if calc, err = a.calculatorStatus(cmd); err != nil {
			errs = append(errs, err)
		}
	}
	if agent != nil || calc != nil {
		if err := a.printStatus(agent, calc); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// asksAgent tells whether a command that can ask both servers asks the agent:
// a calculator alone may be named on a machine that has no agent.
func (a *App) asksAgent() bool {
	return a.connection.agentGiven() || a.connection.calculator == ""
}

func (a *App) agentStatus(cmd *cobra.Command) (*agentv1.GetStatusResponse, error) {
	s, err := a.dialAgent(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	answer, err := s.agent().GetStatus(s.ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		return nil, rpcError("getting status", s.target, err)
	}
	return answer, nil
}

func (a *App) calculatorStatus(cmd *cobra.Command) (*calculatorv1.GetStatusResponse, error) {
	s, err := a.dialCalculator(cmd.Context())
	if err != nil {
		return nil, err
	}
	defer s.close()
	answer, err := s.calculator().GetStatus(s.ctx, &calculatorv1.GetStatusRequest{})
	if err != nil {
		return nil, rpcError("getting status", s.target, err)
	}
	return answer, nil
}

func (a *App) printStatus(agent *agentv1.GetStatusResponse, calc *calculatorv1.GetStatusResponse) error {
	if a.output.forProgram() {
		return a.printStatusDocument(agent, calc)
	}
	var out bytes.Buffer
	if agent != nil {
		if err := a.writeAgentStatus(&out, agent); err != nil {
			return err
		}
	}
	if calc != nil {
		if agent != nil {
			out.WriteByte('\n')
		}
		if err := a.writeCalculatorStatus(&out, calc); err != nil {
			return err
		}
	}
	return write(a.Stdout, out.Bytes())
}

// printStatusDocument prints {"agent": ..., "calculator": ...} with what was
// asked.
func (a *App) printStatusDocument(agent *agentv1.GetStatusResponse, calc *calculatorv1.GetStatusResponse) error {
	parts := map[string]json.RawMessage{}
	var err error
	if agent != nil {
		if parts["agent"], err = document(agent); err != nil {
			return err
		}
	}
	if calc != nil {
		if parts["calculator"], err = document(calc); err != nil {
			return err
		}
	}
	doc, err := json.Marshal(parts)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	return a.printDocument(doc)
}

// section writes a titled list of "name  value" lines; a line without a value
// is left out.
func section(out *bytes.Buffer, title string, lines [][2]string) error {
	t := &table{}
	for _, line := range lines {
		if line[1] != "" {
			t.row("  "+line[0], line[1])
		}
	}
	fmt.Fprintln(out, title)
	if len(t.rows) == 0 {
		return nil
	}
	t.header, t.rows = t.rows[0], t.rows[1:]
	return t.print(out)
}

// indented writes a table below a title, if it has rows.
func indented(out *bytes.Buffer, title string, t *table) error {
	if len(t.rows) == 0 {
		return nil
	}
	fmt.Fprintf(out, "%s\n", title)
	t.header[0] = "  " + t.header[0]
	for _, row := range t.rows {
		row[0] = "  " + orNone(row[0])
	}
	return t.print(out)
}

// list writes a titled list of sentences, if there are any.
func list(out *bytes.Buffer, title string, items []string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(out, "%s\n", title)
	for _, item := range items {
		fmt.Fprintf(out, "  %s\n", item)
	}
}

func resourceErrors(errs []*dataplanev1.ResourceError) *table {
	t := &table{header: []string{"TYPE", "KEY", "FIELD", "REASON", "MESSAGE"}}
	for _, e := range errs {
		t.row(resourceType(e.GetName().GetType()), e.GetName().GetKey(), e.GetField(), e.GetReason(), e.GetMessage())
	}
	return t
}
