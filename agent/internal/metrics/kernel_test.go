// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"fmt"
	"testing"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// TestProblems has more problems than are told, and one twice: the metric names
// objects and fields, each once.
func TestProblems(t *testing.T) {
	var problems []*dataplanev1.ResourceError
	for i := range 2 * maxProblems {
		problems = append(problems, &dataplanev1.ResourceError{
			Name:  &dataplanev1.ResourceName{Type: dataplanev1.ResourceType_RESOURCE_TYPE_SERVICE, Key: fmt.Sprintf("shop/s%d", i/2)},
			Field: "external_ips", Reason: "ADDRESS_IN_USE",
		})
	}
	problems = append(problems, &dataplanev1.ResourceError{Reason: "ONE_MORE"})
	m := New("test")
	m.RegisterSources(Sources{
		Counters: func() (map[layout.CounterKey]layout.Counter, error) { return nil, nil },
		Fill:     func() map[string]Fill { return nil },
		Failures: func() map[string]uint64 { return nil },
		Writes:   func() map[tables.Write]uint64 { return nil },
		Held:     func() map[string]uint64 { return nil },
		Problems: func() []*dataplanev1.ResourceError { return problems },
		LogBytes: func() int64 { return 0 },
		LogAway:  func() bool { return false },
	})
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "millrace_agent_problem" {
			continue
		}
		labels := map[string]string{}
		for _, l := range family.GetMetric()[0].GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		want := map[string]string{"type": "SERVICE", "key": "shop/s0", "field": "external_ips", "reason": "ADDRESS_IN_USE"}
		if fmt.Sprint(labels) != fmt.Sprint(want) || len(family.GetMetric()) != maxProblems {
			t.Errorf("%d series, the first %v; want %d, %v", len(family.GetMetric()), labels, maxProblems, want)
		}
		return
	}
	t.Error("there is no millrace_agent_problem")
}
