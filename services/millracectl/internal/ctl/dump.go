// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// typeNames are the resource types by the words that --type takes.
func typeNames() []string {
	var names []string
	for n := int32(1); ; n++ {
		if _, ok := dataplanev1.ResourceType_name[n]; !ok {
			return names
		}
		names = append(names, resourceType(dataplanev1.ResourceType(n)))
	}
}

func (a *App) newDump() *cobra.Command {
	var types []string
	cmd := &cobra.Command{
		Use:               "dump NODE",
		Short:             "Print what a node was computed to get (calculator)",
		Args:              exactly("NODE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.dumpNode(cmd, args[0], types) },
		ValidArgsFunction: a.completeNodes,
	}
	cmd.Flags().StringSliceVar(&types, "type", nil, "only resources of these types: "+strings.Join(typeNames(), ", "))
	mustComplete(cmd, "type", typeNames()...)
	return cmd
}

func (a *App) dumpNode(cmd *cobra.Command, node string, types []string) error {
	request := &calculatorv1.DumpNodeRequest{NodeName: node}
	for _, name := range types {
		value, ok := dataplanev1.ResourceType_value["RESOURCE_TYPE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))]
		if !ok || value == 0 {
			return usagef("invalid --type %q; allowed are %s", name, strings.Join(typeNames(), ", "))
		}
		request.Types = append(request.Types, dataplanev1.ResourceType(value))
	}
	s, err := a.dialCalculator(cmd.Context())
	if err != nil {
		return err
	}
	defer s.close()
	stream, err := s.calculator().DumpNode(s.ctx, request)
	answers, err := collect(s, fmt.Sprintf("dumping node %q", node), stream, err)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		resources := make([]*dataplanev1.Resource, 0, len(answers))
		for _, answer := range answers {
			resources = append(resources, answer.GetResource())
		}
		return printList(a, resources)
	}
	t := &table{header: []string{"TYPE", "KEY", "VERSION", "CONTENT"}}
	for _, answer := range answers {
		r := answer.GetResource()
		t.row(resourceType(r.GetName().GetType()), r.GetName().GetKey(), fmt.Sprintf("%016x", r.GetVersion()), content(r))
	}
	return a.printTable(t, "resources")
}

func (a *App) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	answer, err := a.listNodes(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, n := range answer.GetNodes() {
		names = append(names, n.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
