// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"strings"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newEndpoints() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "endpoints [NAME]",
		Short: "List the node's pods with their devices, and who told of them (agent)",
		Long: `List the pods of the node that have addresses of their own.

KNOWN FROM says who told the agent of a pod: the calculator, the CNI plugin when
the pod's interface was made, or both. DEVICE is the one whose programs catch the
pod's packets; without one the last column says why there is none.`,
		Args: optional("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &agentv1.ListEndpointsRequest{Namespace: namespace}
			if len(args) == 1 {
				request.Name = args[0]
			}
			return a.endpoints(cmd, request)
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only pods of this namespace (default all)")
	return cmd
}

func (a *App) endpoints(cmd *cobra.Command, request *agentv1.ListEndpointsRequest) error {
	list, err := listAgent(a, cmd, "listing endpoints", agentv1.AgentServiceClient.ListEndpoints, request)
	if err != nil {
		return err
	}
	if a.output.forProgram() {
		return printList(a, list)
	}
	t := a.table([]string{"NAMESPACE", "NAME", "ADDRESSES", "DEVICE", "KNOWN FROM", "PROBLEM"},
		"UID", "FOUND BY", "SANDBOX", "INTERFACE", "ADDED")
	for _, e := range list {
		added := a.since(e.GetAddTime())
		if added != "" {
			added += " ago"
		}
		t.row(e.GetNamespace(), e.GetName(), strings.Join(e.GetAddresses(), ","), e.GetDevice(), strings.Join(e.GetSources(), ","), e.GetProblem(),
			e.GetUid(), e.GetDeviceBy(), e.GetContainerId(), e.GetInterface(), added)
	}
	return a.printTable(t, "endpoints")
}
