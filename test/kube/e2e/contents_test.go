// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// flowMaps hold what traffic left behind, counters, and numbers that rest
// before they are given out again.
var flowMaps = []string{"embryonic_", "established_", "counters", "sockets_", "connected_", "spilled_", "fragments_", "ids"}

// contents are the sorted entries of an agent's maps, but for flowMaps and for
// elements of the backends arrays that no frontend leads to: an array has no
// entries to delete.
func contents(ctx context.Context, t *testing.T, agent *testbed.Agent) []string {
	t.Helper()
	// What waits for contents wants them also at the end of its time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	all, err := agent.MapEntries(ctx, flowMaps)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("the maps of %s are empty", agent.Node.Name)
	}
	all = slices.DeleteFunc(all, unused(all))
	slices.Sort(all)
	return all
}

var (
	backendElement = regexp.MustCompile(`^backends_(v[46]) (\d+) = `)
	backendRange   = regexp.MustCompile(`^frontends_(v[46]) .* backends \[(\d+),(\d+)\)`)
)

// unused tells the elements of the backends arrays that no frontend among the
// entries leads to.
func unused(entries []string) func(string) bool {
	used := map[string]bool{}
	for _, entry := range entries {
		if match := backendRange.FindStringSubmatch(entry); match != nil {
			first, _ := strconv.Atoi(match[2])
			end, _ := strconv.Atoi(match[3])
			for i := first; i < end; i++ {
				used[fmt.Sprint(match[1], " ", i)] = true
			}
		}
	}
	return func(entry string) bool {
		match := backendElement.FindStringSubmatch(entry)
		return match != nil && !used[match[1]+" "+match[2]]
	}
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
