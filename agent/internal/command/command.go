// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millrace-project/millrace/agent/internal/buildinfo"
	"github.com/millrace-project/millrace/agent/internal/netfilter"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// Exit statuses.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a mistake of the caller.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// Main runs the command line and returns the exit status. Mistakes of the
// caller are one line on stderr and status 2.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "millrace-agent: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "millrace-agent",
		Short: "Programs this node's kernel with what Millrace's calculators compute",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := o.check()
			if err != nil {
				return usageError{err}
			}
			return run(cmd.Context(), s)
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var bad *pflag.InvalidValueError
		if errors.As(err, &bad) {
			return usageError{fmt.Errorf("--%s: %q must be %s", bad.GetFlag().Name, bad.GetValue(), allowed(bad.GetFlag()))}
		}
		return usageError{fmt.Errorf("%w; %s --help lists what is allowed", err, cmd.CommandPath())}
	})
	o.register(root.Flags())
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(newVersion(), newCleanup(), newPreflight())
	return root
}

// allowed describes the values that a flag takes.
func allowed(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "uint32":
		return fmt.Sprintf("a whole number from 0 to %d", uint32(math.MaxUint32))
	case "stringSlice":
		return "values separated by commas"
	}
	return "a " + f.Value.Type()
}

// noArgs refuses arguments that are no flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("unknown argument %q; allowed are flags and the commands version, cleanup and preflight", args[0])}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), buildinfo.Line("millrace-agent"))
		},
	}
}

func newCleanup() *cobra.Command {
	o, after := &options{}, &afterCleanup{}
	cmd := &cobra.Command{
		Use: "cleanup", Short: "Detach and remove everything of this node from the kernel; run it when the agent is stopped", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(o.checkLog(), o.cni.checkPaths()); err != nil {
				return usageError{err}
			}
			lock, err := mbpf.LockPins(o.bpfFS, false)
			switch {
			case err == nil:
				defer lock.Close() //nolint:errcheck // it goes with the process
			case !errors.Is(err, os.ErrNotExist):
				return fmt.Errorf("clean up: %w", err)
			}
			// First of all: what comes now would wait for an agent in vain.
			if err := o.removeCNI(cmd.OutOrStdout()); err != nil {
				return err
			}
			removed, err := mbpf.Remove(o.bpfFS)
			tracking := netfilter.Tracking{SysctlDir: o.sysctlDir, StateDir: o.stateDir}
			if err := errors.Join(err, tracking.Restore()); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
			if err := after.forget(o); err != nil {
				return fmt.Errorf("clean up: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), describeRemoved(removed, o.bpfFS))
			after.wait(cmd.Context())
			return nil
		},
	}
	o.registerPaths(cmd.Flags())
	o.registerFallback(cmd.Flags())
	o.cni.registerPaths(cmd.Flags())
	after.register(cmd.Flags())
	return cmd
}

// describeRemoved tells in one line what cleanup removed.
func describeRemoved(r mbpf.Removed, path string) string {
	if r == (mbpf.Removed{}) {
		return "nothing pinned at " + path
	}
	return fmt.Sprintf("removed %d attachments, %d programs and %d maps pinned at %s", r.Attachments, r.Programs, r.Maps, path)
}
