// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/calc/services"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Config is what the Settings object says, with defaults filled in. The zero
// value is not useful; see DefaultConfig.
type Config struct {
	nodePorts model.PortRange
}

// DefaultConfig is what holds without a Settings object.
func DefaultConfig() Config { return Config{nodePorts: model.DefaultNodePorts} }

// ParseSettings reads a Settings object. A field that cannot be used has its
// default. An object of another name than the one that counts is only a
// problem; ok is false then.
func ParseSettings(object *model.Settings) (config Config, problems []problem.Problem, ok bool) {
	config = DefaultConfig()
	list := &problem.List{Object: object.Key()}
	if object.Name != model.SettingsName {
		list.Add("metadata.name", "only the settings named %q are used", model.SettingsName)
		return config, list.Sorted(), false
	}
	if ports := object.NodePorts; ports != nil {
		if services.ValidPort(ports.First) && services.ValidPort(ports.Last) && ports.First <= ports.Last {
			config.nodePorts = *ports
		} else {
			list.Add("spec.nodePorts", "%s is not a range of ports: %s is used",
				rangeText(*ports), rangeText(config.nodePorts))
		}
	}
	return config, list.Sorted(), true
}

func rangeText(ports model.PortRange) string { return fmt.Sprintf("%d-%d", ports.First, ports.Last) }

// Build makes the content of a node's NodeConfig resource.
func (c Config) Build(node string) *dataplanev1.NodeConfig {
	return &dataplanev1.NodeConfig{
		NodeName: node,
		Mode:     dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
		NodePorts: &dataplanev1.PortRange{
			First: uint32(c.nodePorts.First),
			Last:  uint32(c.nodePorts.Last),
		},
	}
}
