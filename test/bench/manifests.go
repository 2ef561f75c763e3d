// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/testbed"
)

// fillersPerFile is how many services that no one dials share a manifest.
const fillersPerFile = 100

// applyFillers writes the manifests that bring the cluster to count services.
func applyFillers(cluster *testbed.Cluster, family, count int) error {
	services := fillers(cluster, family, count)
	for i := 0; i < len(services); i += fillersPerFile {
		var objects []runtime.Object
		for _, filler := range services[i:min(i+fillersPerFile, len(services))] {
			objects = append(objects, filler.Objects()...)
		}
		if err := cluster.Apply(fmt.Sprintf("fillers-%05d", i), objects...); err != nil {
			return err
		}
	}
	return nil
}

// startStack builds a cluster with Millrace that reads its services from a
// directory, and returns when all nodes have all of them. The stack is not nil
// after most errors, and is to be closed then too.
func startStack(ctx context.Context, r *run, name string, services int) (*testbed.Stack, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if r.binaries == (testbed.Binaries{}) {
		var err error
		if r.binaries, err = testbed.BuildBinaries("bin"); err != nil {
			return nil, err
		}
	}
	stack, err := testbed.StartStack(ctx, clusterOptions(name), r.binaries)
	if err != nil {
		return stack, err
	}
	if err := applyFillers(stack.Cluster, r.Family, services); err != nil {
		return stack, err
	}
	if err := stack.Serve(ctx, dialled(stack.Cluster)...); err != nil {
		return stack, fmt.Errorf("programming the services: %w", err)
	}
	for _, agent := range stack.Agents {
		err := testbed.Eventually(ctx, func() error {
			n, err := servicesHeld(ctx, agent)
			if err == nil && n != services {
				err = fmt.Errorf("the agent of %s holds %d services, want %d", agent.Node.Name, n, services)
			}
			return err
		})
		if err != nil {
			return stack, err
		}
		if err := agent.WaitInSync(ctx); err != nil {
			return stack, err
		}
	}
	return stack, nil
}

// servicesHeld is how many services the agent holds.
func servicesHeld(ctx context.Context, agent *testbed.Agent) (int, error) {
	status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		return 0, err
	}
	for name, n := range status.GetHeld() {
		if strings.EqualFold(strings.TrimPrefix(name, "RESOURCE_TYPE_"), "service") {
			return int(n), nil
		}
	}
	return 0, fmt.Errorf("the agent of %s does not tell how many services it holds: %v", agent.Node.Name, status.GetHeld())
}
