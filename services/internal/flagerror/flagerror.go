// SPDX-License-Identifier: Apache-2.0

// Package flagerror says in one line what is wrong with a command line's flag
// and what is allowed instead.
package flagerror

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Message turns the error of a flag that cannot be parsed into one that says
// what is allowed: the flags of the command if there is no such flag, else the
// values.
func Message(cmd *cobra.Command, err error) string {
	var (
		unknown *pflag.NotExistError
		invalid *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("%s of %q; allowed are %s", err, cmd.CommandPath(), strings.Join(names(cmd), ", "))
	case errors.As(err, &invalid):
		if allowed := values[invalid.GetFlag().Value.Type()]; allowed != "" {
			return fmt.Sprintf("invalid --%s %q; allowed is %s", invalid.GetFlag().Name, invalid.GetValue(), allowed)
		}
	}
	return err.Error()
}

// values says what is allowed, by the type of a flag.
var values = map[string]string{
	"bool":     "true or false",
	"duration": "a time with its unit, as in 500ms, 5s or 1h30m",
}

func names(cmd *cobra.Command) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + "/" + name
		}
		names = append(names, name)
	})
	return names
}
