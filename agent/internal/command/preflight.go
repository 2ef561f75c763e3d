// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	mbpf "github.com/millrace-project/millrace/bpf"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// registerWithout adds the flag for features to leave unused.
func (o *options) registerWithout(flags *pflag.FlagSet) {
	flags.StringSliceVar(&o.without, "without", nil,
		"kernel features to leave unused although the kernel has them: "+strings.Join(mbpf.OptionalKeys(), ", ")+"; repeat, or separate by commas, for more")
}

// leaveUnused applies --without.
func (o *options) leaveUnused(to *mbpf.Options) error {
	for _, key := range o.without {
		if err := to.LeaveUnused(key); err != nil {
			return fmt.Errorf("--without: %w", err)
		}
	}
	return nil
}

// checkKernel refuses a kernel that lacks what is needed, before anything is
// made. Where programs are pinned it has shown that it does not, and a restart
// need not ask again.
func (o *options) checkKernel() error {
	if mbpf.ProgramsPinned(o.bpfFS) {
		return nil
	}
	return mbpf.Check(mbpf.Probe())
}

func newPreflight() *cobra.Command {
	o, format := &options{}, ""
	cmd := &cobra.Command{
		Use: "preflight", Short: "Tell what the agent uses of the kernel, what it has of that and what follows; status 1 if a required feature is missing", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usageError{fmt.Errorf("--output: %q must be text or json", format)}
			}
			var options mbpf.Options
			if err := o.leaveUnused(&options); err != nil {
				return usageError{err}
			}
			report, failure := preflight(options)
			if err := printReport(cmd.OutOrStdout(), format, report); err != nil {
				return err
			}
			return failure
		},
	}
	cmd.Flags().StringVarP(&format, "output", "o", "text", "text or json")
	o.registerWithout(cmd.Flags())
	return cmd
}

// preflight asks the kernel for its features and, if none that is required is
// missing, lets its verifier judge every program.
func preflight(options mbpf.Options) (*agentv1.DataplaneState, error) {
	list := options.Features()
	failure := mbpf.Check(list)
	verified := mbpf.Feature{Name: "the verifier passes every program", Required: true, Err: errors.New("not tried, as other features are missing")}
	var programs []mbpf.ProgramInfo
	if failure == nil {
		if programs, verified.Err = mbpf.Trial(options); verified.Err != nil {
			failure = fmt.Errorf("kernel %s: %w", mbpf.KernelRelease(), verified.Err)
		}
	}
	return &agentv1.DataplaneState{
		Kernel: mbpf.KernelRelease(), Features: bpf.Features(append(list, verified)), Programs: bpf.Programs(programs),
	}, failure
}

// printReport prints the part of an agent's status that is about the kernel, in
// JSON with the same names as the status has.
func printReport(out io.Writer, format string, report *agentv1.DataplaneState) error {
	if format == "json" {
		text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(report)
		if err != nil {
			return fmt.Errorf("encode report: %w", err)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			return fmt.Errorf("encode report: %w", err)
		}
		// The rest is about a running agent.
		text, err = json.MarshalIndent(map[string]json.RawMessage{
			"kernel": fields["kernel"], "features": fields["features"], "programs": fields["programs"],
		}, "", "  ")
		if err != nil {
			return fmt.Errorf("encode report: %w", err)
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	}
	fmt.Fprintf(out, "kernel %s\n", report.GetKernel())
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FEATURE\tFOUND\tUSED\tWHAT FOLLOWS")
	for _, f := range report.GetFeatures() {
		follows := f.GetConsequence()
		if f.GetRequired() && !f.GetAvailable() {
			follows += ": " + strings.ReplaceAll(f.GetError(), "\n", ", ")
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", f.GetName(), yesNo(f.GetAvailable()), yesNo(f.GetUsed()), follows)
	}
	if len(report.GetPrograms()) > 0 {
		fmt.Fprintln(table, "\nPROGRAM\tINSTRUCTIONS\tVERIFIED")
		for _, p := range report.GetPrograms() {
			fmt.Fprintf(table, "%s\t%d\t%d\n", p.GetName(), p.GetInstructions(), p.GetVerifiedInstructions())
		}
	}
	return table.Flush()
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}
