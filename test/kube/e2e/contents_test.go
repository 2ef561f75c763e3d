// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// flowMaps hold what traffic left behind, counters, and numbers that rest
// before they are given out again.
var flowMaps = []string{"embryonic_", "established_", "counters", "sockets_", "connected_", "ids"}

// contents are the sorted entries of an agent's maps, but for flowMaps.
func contents(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	list, err := agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, state := range list.GetMaps() {
		if slices.ContainsFunc(flowMaps, func(prefix string) bool { return strings.HasPrefix(state.GetName(), prefix) }) {
			continue
		}
		stream, err := agent.DumpMap(ctx, &agentv1.DumpMapRequest{Name: state.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		for {
			entry, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("dumping %s: %v", state.GetName(), err)
			}
			all = append(all, state.GetName()+" "+entry.GetKey()+" = "+entry.GetValue())
		}
	}
	if len(all) == 0 {
		t.Fatalf("the maps of %s are empty", agent.Node.Name)
	}
	slices.Sort(all)
	return all
}

// waitContents waits until an agent's maps are as wanted.
func waitContents(ctx context.Context, t *testing.T, agent *testbed.Agent, wanted func([]string) bool) {
	t.Helper()
	var now []string
	err := testbed.Eventually(ctx, func() error {
		if now = contents(ctx, t, agent); !wanted(now) {
			return errors.New("the maps are not as wanted")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v:\n%s", agent.Node.Name, err, strings.Join(now, "\n"))
	}
}

// waitBaseline waits until an agent's maps hold what they did, and demands
// that the agent finds no difference between what should be and what is.
func waitBaseline(ctx context.Context, t *testing.T, agent *testbed.Agent, baseline []string) {
	t.Helper()
	var found string
	err := testbed.Eventually(ctx, func() error {
		if found = difference(baseline, contents(ctx, t, agent)); found != "" {
			return errors.New("the maps differ from before")
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v:\n%s", agent.Node.Name, err, found)
	}
	stream, err := agent.DiffDesired(ctx, &agentv1.DiffDesiredRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		line, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Errorf("%s: the kernel differs from what should be there: %v", agent.Node.Name, line)
	}
}

// difference lists what only one of two sorted lists has.
func difference(before, after []string) string {
	var lines strings.Builder
	for _, line := range before {
		if _, found := slices.BinarySearch(after, line); !found {
			fmt.Fprintln(&lines, "-", line)
		}
	}
	for _, line := range after {
		if _, found := slices.BinarySearch(before, line); !found {
			fmt.Fprintln(&lines, "+", line)
		}
	}
	return lines.String()
}
