// SPDX-License-Identifier: Apache-2.0

// Package ctl is millracectl's command line: one subcommand for every RPC of
// an agent's AgentService and a calculator's CalculatorService.
package ctl

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	// ExitOK says that the command did what it was asked.
	ExitOK = 0
	// ExitFailed says that it could not, or that diff found differences or
	// repair left some.
	ExitFailed = 1
	// ExitUsage says that the command line made no sense.
	ExitUsage = 2
)

// App is millracectl with everything it takes from its process, so that tests
// can give it other things.
type App struct {
	// Version is what `millracectl version` prints.
	Version string
	// Stdout takes what was asked for, Stderr errors and remarks.
	Stdout, Stderr io.Writer
	// Getenv reads an environment variable.
	Getenv func(string) string
	// Now is the clock that ages are computed by.
	Now func() time.Time

	connection connectionFlags
	output     outputFormat
}

// Run runs one command line and returns the exit status. An error is printed
// as one line.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(a.Stderr, "millracectl: %s\n", oneLine(err))
	if isUsage(err) {
		return ExitUsage
	}
	return ExitFailed
}

func (a *App) newRoot() *cobra.Command {
	a.output = formatTable
	root := &cobra.Command{
		Use:   "millracectl",
		Short: "Show what Millrace's agents and calculators know and hold",
		Long: `millracectl asks Millrace's agents (AgentService) and calculators
(CalculatorService) what they know and hold.

Addresses are "unix:///path" or "host:port". Without --tls-ca a connection is
not encrypted, which is allowed on a unix socket and on loopback, and elsewhere
only with --insecure.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          subcommandRequired,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(flagError)
	a.connection.register(root.PersistentFlags(), a.Getenv)
	root.PersistentFlags().VarP(&a.output, "output", "o", "output format: "+allowedFormats)
	mustComplete(root, "output", "table", "wide", "json", "yaml")
	root.AddCommand(
		a.newStatus(),
		a.newNodes(),
		a.newServices(),
		a.newEndpoints(),
		a.newConntrack(),
		a.newAffinity(),
		a.newMaps(),
		a.newDiff(),
		a.newRepair(),
		a.newDump(),
		a.newVersion(),
	)
	// The completion command writes to what is the output when it is made.
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = subcommandRequired
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // else Args are not looked at
		}
	}
	return root
}

// mustComplete gives a flag a fixed set of completions.
func mustComplete(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic(fmt.Sprintf("registering completion of --%s: %v", flag, err))
	}
}
