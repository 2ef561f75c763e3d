// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/services/internal/flagerror"
)

// usageError is a command line that makes no sense.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

func isUsage(err error) bool {
	var usage *usageError
	return errors.As(err, &usage)
}

// flagError turns a flag that cannot be parsed into one line that says what is
// allowed.
func flagError(cmd *cobra.Command, err error) error {
	return usagef("%s", flagerror.Message(cmd, err))
}

// subcommandRequired refuses arguments of a command that has subcommands,
// because such an argument is a subcommand that does not exist.
func subcommandRequired(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return usagef("unknown command %q of %q; allowed are %s", args[0], cmd.CommandPath(), strings.Join(names, ", "))
}

// exactly refuses any other number of arguments than those named.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return usagef("%q takes no arguments, but got %q", cmd.CommandPath(), args[0])
		}
		return usagef("%q takes %d argument (%s), but got %d", cmd.CommandPath(), len(names), strings.Join(names, " "), len(args))
	}
}

// optional refuses more arguments than the one that is named.
func optional(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return usagef("%q takes at most one argument (%s), but got %d", cmd.CommandPath(), name, len(args))
	}
}

// rpcError says what was tried, with whom, and what came of it, without the
// layers that gRPC wraps around the cause.
func rpcError(tried string, target target, err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %s at %s: %w", tried, target.role, target.address, err)
	}
	switch st.Code() {
	case codes.Unavailable:
		return fmt.Errorf("%s: cannot reach the %s at %s: %s", tried, target.role, target.address, dialCause(st.Message()))
	case codes.DeadlineExceeded:
		return fmt.Errorf("%s: no answer from the %s at %s within %s (--timeout)", tried, target.role, target.address, target.timeout)
	case codes.Unimplemented:
		return fmt.Errorf("%s: what answers at %s is no Millrace %s: %s", tried, target.address, target.role, st.Message())
	default:
		return fmt.Errorf("%s: the %s at %s answered %s: %s", tried, target.role, target.address, st.Code(), st.Message())
	}
}

// dialCause takes gRPC's wrapping off a connection error:
// `connection error: desc = "transport: Error while dialing: dial tcp ..."`.
func dialCause(message string) string {
	if _, quoted, ok := strings.Cut(message, `desc = "`); ok {
		message = strings.TrimSuffix(quoted, `"`)
	}
	message = strings.TrimPrefix(message, "transport: ")
	return strings.TrimPrefix(message, "Error while dialing: ")
}

// oneLine makes an error one line whatever a server put into it.
func oneLine(err error) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(err.Error(), "\n", "; ")), " ")
}
