// SPDX-License-Identifier: Apache-2.0

package restart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"github.com/millrace-project/millrace/test/testbed"
)

// diffHoldsUpNothing changes services while the agent compares all with the
// kernel.
func diffHoldsUpNothing(t *testing.T, stack *testbed.Stack, agent *testbed.Agent) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	diffs := make(chan error, 1)
	stop := make(chan struct{})
	count := 0
	go func() {
		for {
			select {
			case <-stop:
				diffs <- nil
				return
			default:
			}
			stream, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
			if err == nil {
				var difference *agentv1.DiffDesiredResponse
				if difference, err = stream.Recv(); err == nil {
					err = fmt.Errorf("nothing is wrong, and there is the difference %v", difference)
				}
			}
			if !errors.Is(err, io.EOF) {
				diffs <- err
				return
			}
			count++
		}
	}()
	pods := stack.Pods()
	service := testbed.Service{Name: "changing", ClusterIPs: []netip.Addr{testbed.ServiceIP(4, 8)}, Ports: []testbed.Port{{Port: 80, Target: 8080}}}
	var longest time.Duration
	for i := range 10 {
		service.Endpoints = []testbed.Endpoint{pods[i%2].Endpoint()}
		if err := stack.ApplyService(service); err != nil {
			t.Fatal(err)
		}
		if err := agent.WaitServices(ctx, service); err != nil {
			t.Fatal(err)
		}
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		longest = max(longest, status.GetCalculator().GetLastLatency().AsDuration())
	}
	close(stop)
	if err := <-diffs; err != nil {
		t.Fatal(err)
	}
	t.Logf("figure: %d comparisons while services changed; the longest from a change to the kernel: %v", count, longest)
	if count == 0 {
		t.Error("nothing was compared")
	}
}
