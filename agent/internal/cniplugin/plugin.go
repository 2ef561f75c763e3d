// SPDX-License-Identifier: Apache-2.0

// Package cniplugin is the CNI plugin millrace-cni. It runs last in a chain, on
// the host: it finds out what the plugins before it made, tells the node's agent,
// and hands on their result as it is.
package cniplugin

import (
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/agent/internal/endpoints/deferred"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// Versions are the versions of the CNI specification that the plugin speaks.
var Versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// Codes of errors that are the plugin's own, as the specification leaves them to
// plugins.
const (
	// CodeRefused says that the agent cannot take the pod as it is.
	CodeRefused = 100
	// CodeSandbox says that the pod's network namespace could not be looked at.
	CodeSandbox = 101
	// CodeCheck says that the endpoint is not as it was left.
	CodeCheck = 102
)

// Main runs the plugin as the environment and standard input ask for, and returns
// the exit status.
func Main(build string) int {
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: add, Del: del, Check: check, GC: collect, Status: ready,
	}, version.PluginSupports(Versions...), "CNI plugin millrace-cni "+build)
	if err == nil {
		return 0
	}
	if failure := err.Print(); failure != nil {
		fmt.Fprintln(os.Stderr, "millrace-cni: print error:", failure)
	}
	return 1
}

func add(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	request, err := describe(conf, args)
	if err != nil {
		return err
	}
	if err := ask(conf.Socket, conf.addTimeout, agentv1.EndpointServiceClient.AddEndpoint, request); err != nil {
		return cniError(err, conf, fmt.Sprintf("add pod %s/%s", request.GetPodNamespace(), request.GetPodName()), CodeRefused)
	}
	return types.PrintResult(conf.PrevResult, conf.CNIVersion)
}

// del never fails because the agent is away: pods must be able to go while it is
// restarted or after it was removed. What it would have done waits for it.
func del(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	request := &agentv1.DeleteEndpointRequest{Attachment: attachment(conf, args)}
	// An unreadable result is no reason to keep a pod from going: the agent knows
	// the addresses.
	if conf.readResult() == nil && conf.PrevResult != nil {
		request.Addresses, _ = addressesIn(conf.PrevResult, args.IfName)
	}
	if pod, err := podOf(args.Args); err == nil {
		request.PodNamespace, request.PodName, request.PodUid = pod.namespace, pod.name, pod.uid
	}
	err = ask(conf.Socket, conf.delTimeout, agentv1.EndpointServiceClient.DeleteEndpoint, request)
	if err == nil {
		return nil
	}
	if !away(err) {
		return cniError(err, conf, "delete "+args.IfName+" of sandbox "+args.ContainerID, CodeRefused)
	}
	if err := deferred.Leave(conf.Socket, request); err != nil {
		// A directory that cannot be written must not hold the pod either; the agent
		// finds by itself that the device is gone.
		fmt.Fprintln(os.Stderr, "millrace-cni:", err)
	}
	return nil
}

func check(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	request, err := describe(conf, args)
	if err != nil {
		return err
	}
	question := &agentv1.CheckEndpointRequest{Endpoint: request}
	if err := ask(conf.Socket, conf.addTimeout, agentv1.EndpointServiceClient.CheckEndpoint, question); err != nil {
		return cniError(err, conf, fmt.Sprintf("check pod %s/%s", request.GetPodNamespace(), request.GetPodName()), CodeCheck)
	}
	return nil
}

// collect deletes what the container runtime lost track of.
func collect(args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	request := &agentv1.RetainEndpointsRequest{Network: conf.Name}
	for _, valid := range conf.ValidAttachments {
		request.Attachments = append(request.Attachments, &agentv1.CNIAttachment{
			Network: conf.Name, ContainerId: valid.ContainerID, Interface: valid.IfName,
		})
	}
	if err := ask(conf.Socket, conf.delTimeout, agentv1.EndpointServiceClient.RetainEndpoints, request); err != nil {
		return cniError(err, conf, "collect garbage of network "+conf.Name, CodeRefused)
	}
	return nil
}

// ready tells that pods can be added. It does not ask the agent: a node whose
// network is reported as unready is taken out of every service, which is worse
// than a pod that waits until the agent has restarted.
func ready(args *skel.CmdArgs) error {
	_, err := readConfig(args.StdinData)
	return err
}

// away tells that the agent did not answer, or was about to stop.
func away(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unimplemented:
		return true
	}
	return false
}

// cniError makes an error for the container runtime, which shows it to people as
// an event of the pod.
func cniError(err error, conf *config, doing string, code uint) error {
	var ready *types.Error
	if errors.As(err, &ready) {
		return ready
	}
	if away(err) {
		return types.NewError(types.ErrTryAgainLater,
			fmt.Sprintf("%s: Millrace's agent did not answer at %s", doing, conf.Socket),
			fmt.Sprintf("%s; is the pod millrace-agent of this node running?", status.Convert(err).Message()))
	}
	return types.NewError(code, doing+": "+status.Convert(err).Message(), "Millrace's agent at "+conf.Socket)
}
