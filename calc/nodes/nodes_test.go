// SPDX-License-Identifier: Apache-2.0

package nodes_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/nodes"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	got, problems := nodes.Build(&model.Node{
		Name:     "n1",
		Labels:   map[string]string{model.LabelZone: "z1"},
		PodCIDRs: []string{"fd01::1/64", "10.1.2.3/16", "10.1.0.0/16"},
		Addresses: []model.NodeAddress{
			{Type: "InternalIP", Address: "172.16.0.9"},
			{Type: "InternalIP", Address: "172.16.0.1"},
			{Type: "InternalIP", Address: "172.16.0.9"},
			{Type: "Hostname", Address: "not an address"},
			{Type: "ExternalIP", Address: "192.0.2.1"},
		},
	})
	if len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
	want := &dataplanev1.Node{
		Name: "n1",
		Zone: "z1",
		// The object's order: the first is the one that the node speaks from.
		InternalAddresses: [][]byte{{172, 16, 0, 9}, {172, 16, 0, 1}},
		ExternalAddresses: [][]byte{{192, 0, 2, 1}},
		PodCidrs: []*dataplanev1.Prefix{
			{Address: []byte{10, 1, 0, 0}, Length: 16},
			{Address: []byte{0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, Length: 64},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestSinglePodCIDR(t *testing.T) {
	t.Parallel()
	got, _ := nodes.Build(&model.Node{Name: "n1", PodCIDR: "10.1.0.0/16"})
	if len(got.GetPodCidrs()) != 1 {
		t.Errorf("spec.podCIDR is not used: %v", got)
	}
	_, problems := nodes.Build(&model.Node{Name: "n1", PodCIDR: "10.1.0.0"})
	if len(problems) != 1 || problems[0].Field != "spec.podCIDR" {
		t.Errorf("problems of a bad spec.podCIDR: %v", problems)
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	config, _, ok := nodes.ParseSettings(&model.Settings{
		Name: model.SettingsName, NodePorts: &model.PortRange{First: 20000, Last: 20001}})
	if !ok {
		t.Fatal("the settings do not count")
	}
	want := &dataplanev1.NodeConfig{
		NodeName:  "n1",
		Mode:      dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
		NodePorts: &dataplanev1.PortRange{First: 20000, Last: 20001},
	}
	if diff := cmp.Diff(want, config.Build("n1"), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if got := nodes.DefaultConfig().Build("n1").GetNodePorts(); got.GetFirst() != 30000 || got.GetLast() != 32767 {
		t.Errorf("default node ports: %v", got)
	}
}
