// SPDX-License-Identifier: Apache-2.0

package endpoints_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/millrace-project/millrace/calc/endpoints"
	"github.com/millrace-project/millrace/calc/model"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	running := model.Pod{Namespace: "ns", Name: "p", UID: "u", NodeName: "n1", Phase: "Running",
		PodIPs: []string{"10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2"}}
	want := &dataplanev1.Endpoint{Namespace: "ns", Name: "p", Uid: "u", Addresses: [][]byte{
		{10, 0, 0, 1}, {10, 0, 0, 2}, {0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}}
	for name, test := range map[string]struct {
		edit func(*model.Pod)
		is   bool
	}{
		"running":         {func(*model.Pod) {}, true},
		"pending":         {func(p *model.Pod) { p.Phase = "Pending" }, true},
		"of the host":     {func(p *model.Pod) { p.HostNetwork = true }, false},
		"succeeded":       {func(p *model.Pod) { p.Phase = "Succeeded" }, false},
		"failed":          {func(p *model.Pod) { p.Phase = "Failed" }, false},
		"not scheduled":   {func(p *model.Pod) { p.NodeName = "" }, false},
		"without address": {func(p *model.Pod) { p.PodIPs = nil }, false},
	} {
		p := running
		test.edit(&p)
		got, problems := endpoints.Build(&p)
		if len(problems) != 0 {
			t.Errorf("%s: problems %v", name, problems)
		}
		if !test.is {
			if got != nil {
				t.Errorf("%s: gives %v", name, got)
			}
		} else if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSinglePodIP(t *testing.T) {
	t.Parallel()
	got, _ := endpoints.Build(&model.Pod{NodeName: "n1", PodIP: "10.0.0.1"})
	if len(got.GetAddresses()) != 1 {
		t.Errorf("status.podIP is not used: %v", got)
	}
	got, problems := endpoints.Build(&model.Pod{NodeName: "n1", PodIP: "ten"})
	if got != nil || len(problems) != 1 || problems[0].Field != "status.podIP" {
		t.Errorf("a bad status.podIP gives %v and %v", got, problems)
	}
}
