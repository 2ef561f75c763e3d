// SPDX-License-Identifier: Apache-2.0

// Package command is the command line of millrace-calculator.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/millrace-project/millrace/services/internal/buildinfo"
	"github.com/millrace-project/millrace/services/internal/flagerror"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a wrong flag or value.
type usageError struct{ error }

const name = "millrace-calculator"

// Main runs the command until it is done or the context ends, and returns the
// exit code.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := &options{}
	root := &cobra.Command{
		Use:   name,
		Short: "Compute what every node of a Kubernetes cluster needs and stream it to the nodes' agents",
		Long: `millrace-calculator reads Services, EndpointSlices, Nodes, Namespaces and Pods,
computes what every node needs and streams it, as it changes, to the agents on
the nodes (millrace.dataplane.v1.SyncService). It answers questions by
millrace.calculator.v1.CalculatorService, with server reflection, health and
channelz, so grpcurl and millracectl need nothing but its address.

Any number of calculators may read one API server; agents use any of them. A
directory of manifests must be read by one calculator only.`,
		Example: `  ` + name + ` --source=dir --manifests=./manifests
  ` + name + ` --kubeconfig=$HOME/.kube/config --listen=0.0.0.0:7700 --tls-cert=tls.crt --tls-key=tls.key --tls-client-ca=ca.crt`,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(cmd); err != nil {
				return usageError{err}
			}
			return run(cmd.Context(), o, stderr)
		},
	}
	o.register(root.Flags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{errors.New(flagerror.Message(cmd, err))}
	})
	root.AddCommand(&cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(stdout, buildinfo.Line(name))
			return err
		},
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s: %v (see %s --help)\n", name, err, name)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return exitFailed
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q: no arguments are allowed, only flags and the commands version, help and completion", args[0])}
	}
	return nil
}
