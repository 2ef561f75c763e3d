// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func (a *App) newServices() *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List services with their frontends as they stand in the kernel (agent)",
		Args:  subcommandRequired,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := a.listServices(cmd, &agentv1.ListServicesRequest{Namespace: namespace})
			if err != nil {
				return err
			}
			return a.printServices(found, a.output.wide())
		},
	}
	cmd.PersistentFlags().StringVarP(&namespace, "namespace", "n", "", "only services of this namespace (default all)")
	get := &cobra.Command{
		Use:   "get [NAMESPACE/]NAME",
		Short: "Show one service with its backends",
		Args:  exactly("[NAMESPACE/]NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.getService(cmd, namespace, args[0])
		},
		ValidArgsFunction: a.completeServices,
	}
	cmd.AddCommand(get)
	return cmd
}

func (a *App) getService(cmd *cobra.Command, namespace, name string) error {
	if ns, rest, ok := strings.Cut(name, "/"); ok {
		if namespace != "" && namespace != ns {
			return usagef("%q and --namespace %q name different namespaces; one is allowed", name, namespace)
		}
		namespace, name = ns, rest
	}
	if name == "" {
		return usagef("a service's name is empty; allowed are NAME and NAMESPACE/NAME")
	}
	found, err := a.listServices(cmd, &agentv1.ListServicesRequest{Namespace: namespace, Name: name})
	if err != nil {
		return err
	}
	if len(found) == 0 {
		where := "any namespace"
		if namespace != "" {
			where = "namespace " + namespace
		}
		return fmt.Errorf("the agent at %s has no service %s in %s", a.connection.agent, name, where)
	}
	return a.printServices(found, true)
}

func (a *App) listServices(cmd *cobra.Command, request *agentv1.ListServicesRequest) ([]*agentv1.ListServicesResponse, error) {
	return listAgent(a, cmd, "listing services", agentv1.AgentServiceClient.ListServices, request)
}

// printServices prints one line a frontend; with backends they are listed in
// lines of their own.
func (a *App) printServices(services []*agentv1.ListServicesResponse, backends bool) error {
	if a.output.forProgram() {
		return printList(a, services)
	}
	header := []string{"NAMESPACE", "NAME", "KIND", "FRONTEND", "PROTOCOL", "PORT NAME"}
	if backends {
		header = append(header, "ID", "AFFINITY", "BACKEND", "NODE", "LOCAL")
	} else {
		header = append(header, "BACKENDS", "LOCAL")
	}
	t := &table{header: header}
	for _, svc := range services {
		for _, f := range svc.GetFrontends() {
			cells := []string{
				svc.GetNamespace(), svc.GetName(), f.GetKind(), hostPort(f.GetAddress(), f.GetPort()),
				protocol(f.GetProtocol()), f.GetPortName(),
			}
			if backends {
				backendRows(t, cells, f)
			} else {
				t.row(append(cells, number(uint64(len(f.GetBackends()))), number(localBackends(f)))...)
			}
		}
		if len(svc.GetFrontends()) == 0 {
			t.row(append([]string{svc.GetNamespace(), svc.GetName()}, make([]string, len(header)-2)...)...)
		}
	}
	return a.printTable(t, "services")
}

func backendRows(t *table, frontend []string, f *agentv1.Frontend) {
	affinity := ""
	if seconds := f.GetAffinitySeconds(); seconds > 0 {
		affinity = (time.Duration(seconds) * time.Second).String()
	}
	frontend = append(frontend, number(uint64(f.GetServiceId())), affinity)
	if len(f.GetBackends()) == 0 {
		t.row(append(frontend, "none: refused", "", "")...)
		return
	}
	for _, b := range f.GetBackends() {
		cells := append([]string{}, frontend...)
		t.row(append(cells, hostPort(b.GetAddress(), b.GetPort()), b.GetNode(), yesNo(b.GetLocal()))...)
	}
}

func localBackends(f *agentv1.Frontend) uint64 {
	var n uint64
	for _, b := range f.GetBackends() {
		if b.GetLocal() {
			n++
		}
	}
	return n
}

func (a *App) completeServices(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, err := a.listServices(cmd, &agentv1.ListServicesRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]string, 0, len(found))
	for _, svc := range found {
		names = append(names, svc.GetNamespace()+"/"+svc.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
