// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"fmt"
	"strings"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) writeAgentStatus(out *bytes.Buffer, st *agentv1.GetStatusResponse) error {
	conn := st.GetCalculator()
	dp := st.GetDataplane()
	lines := [][2]string{
		{"version", st.GetVersion()},
		{"up", a.since(st.GetStartTime())},
		{"calculator", calculatorLine(a, conn)},
		{"revision", revisionLine(conn)},
		{"epoch", conn.GetEpoch()},
		{"position", counts(conn.GetPosition().GetResourceVersions())},
		{"last latency", duration(conn.GetLastLatency())},
		{"holds", counts(st.GetHeld())},
		{"dataplane", fmt.Sprintf("%s, %s, %s", mode(dp.GetMode()),
			plural(len(dp.GetAttachments()), "attachment"), plural(len(dp.GetDevices()), "device"))},
		{"kernel", kernelLine(dp)},
		{"CNI", cniLine(st.GetCni())},
	}
	if n := dp.GetAffinities(); n > 0 {
		lines = append(lines, [2]string{"affinity", plural(int(n), "client")})
	}
	if err := section(out, "agent "+st.GetNodeName(), lines); err != nil {
		return err
	}
	if err := indented(out, "calculators known", knownCalculators(st.GetCalculators())); err != nil {
		return err
	}
	if err := indented(out, "authorities trusted", a.trustedAuthorities(st.GetAuthorities())); err != nil {
		return err
	}
	if a.output.wide() {
		if err := writeDataplane(out, dp); err != nil {
			return err
		}
	}
	if err := indented(out, "errors", resourceErrors(st.GetErrors())); err != nil {
		return err
	}
	list(out, "problems", st.GetProblems())
	return nil
}

// calculatorLine tells whom the agent gets its state from, or why from nobody.
func calculatorLine(a *App, conn *agentv1.CalculatorConnection) string {
	if !conn.GetConnected() {
		text := "not connected"
		if age := a.since(conn.GetDisconnectTime()); age != "" {
			text += " for " + age + ", the node goes on as it was last told"
		}
		if e := conn.GetLastError(); e != "" {
			text += ": " + e
		}
		return text
	}
	text := conn.GetAddress()
	if id := conn.GetCalculatorId(); id != "" {
		text += " (" + id + ")"
	}
	if age := a.since(conn.GetConnectTime()); age != "" {
		text += ", connected " + age + " ago"
	}
	if conn.GetConnects() > 1 {
		text += fmt.Sprintf(", connection %d since start", conn.GetConnects())
	}
	if conn.GetInSync() {
		return text + ", in sync"
	}
	return text + ", not in sync yet"
}

func revisionLine(conn *agentv1.CalculatorConnection) string {
	return fmt.Sprintf("%d programmed of %d received", conn.GetProgrammedRevision(), conn.GetReceivedRevision())
}

// cniLine tells whether the CNI plugin is called; empty if the agent installs none.
func cniLine(cni *agentv1.CNIState) string {
	switch {
	case cni == nil:
		return ""
	case cni.GetProblem() != "":
		return "new pods are not told of by the plugin"
	case cni.GetConfig() == "":
		return cni.GetBinary() + ", chained by somebody else"
	}
	return "chained into " + cni.GetConfig()
}

// kernelLine names the kernel and what of it is not used.
func kernelLine(dp *agentv1.DataplaneState) string {
	var without []string
	for _, f := range dp.GetFeatures() {
		if !f.GetUsed() && f.GetConsequence() != "" {
			without = append(without, f.GetName())
		}
	}
	if len(without) == 0 || dp.GetKernel() == "" {
		return dp.GetKernel()
	}
	return dp.GetKernel() + ", without " + strings.Join(without, ", ")
}

func writeDataplane(out *bytes.Buffer, dp *agentv1.DataplaneState) error {
	attachments := &table{header: []string{"PROGRAM", "TARGET", "HOOK", "ADOPTED"}}
	for _, at := range dp.GetAttachments() {
		attachments.row(at.GetProgram(), at.GetTarget(), at.GetHook(), yesNo(at.GetAdopted()))
	}
	devices := &table{header: []string{"DEVICE", "INDEX", "ROLE", "ENDPOINT", "REASON"}}
	for _, d := range dp.GetDevices() {
		devices.row(d.GetName(), number(uint64(d.GetIndex())), d.GetRole(), d.GetEndpoint(), d.GetReason())
	}
	features := &table{header: []string{"FEATURE", "FOUND", "USED", "WHAT FOLLOWS"}}
	for _, f := range dp.GetFeatures() {
		features.row(f.GetName(), yesNo(f.GetAvailable()), yesNo(f.GetUsed()), f.GetConsequence())
	}
	programs := &table{header: []string{"PROGRAM", "INSTRUCTIONS", "VERIFIED"}}
	for _, p := range dp.GetPrograms() {
		programs.row(p.GetName(), number(uint64(p.GetInstructions())), number(uint64(p.GetVerifiedInstructions())))
	}
	for _, part := range []struct {
		title string
		table *table
	}{{"attachments", attachments}, {"devices", devices}, {"kernel features", features}, {"programs", programs}} {
		if err := indented(out, part.title, part.table); err != nil {
			return err
		}
	}
	return nil
}
