// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *App) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of millracectl, and of the servers that an address is given for",
		Args:  exactly(),
		RunE:  func(cmd *cobra.Command, _ []string) error { return a.version(cmd) },
	}
}

func (a *App) version(cmd *cobra.Command) error {
	versions := [][2]string{{"millracectl", a.Version}}
	var errs []error
	if a.connection.agentGiven() {
		st, err := a.agentStatus(cmd)
		if err != nil {
			errs = append(errs, err)
		} else {
			versions = append(versions, [2]string{"agent", st.GetVersion()})
		}
	}
	if a.connection.calculator != "" {
		st, err := a.calculatorStatus(cmd)
		if err != nil {
			errs = append(errs, err)
		} else {
			versions = append(versions, [2]string{"calculator", st.GetVersion()})
		}
	}
	if err := a.printVersions(versions); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *App) printVersions(versions [][2]string) error {
	if !a.output.forProgram() {
		for _, v := range versions {
			fmt.Fprintf(a.Stdout, "%s %s\n", v[0], v[1])
		}
		return nil
	}
	byName := map[string]string{}
	for _, v := range versions {
		byName[v[0]] = v[1]
	}
	doc, err := json.Marshal(byName)
	if err != nil {
		return fmt.Errorf("encoding versions: %w", err)
	}
	return a.printDocument(doc)
}
