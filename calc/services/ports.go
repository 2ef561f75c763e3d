// SPDX-License-Identifier: Apache-2.0

package services

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/calc/problem"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// ParseProtocol reads the protocol of a service's or slice's port. Known but
// unserved protocols are told from unknown ones by known.
func ParseProtocol(text string) (protocol dataplanev1.Protocol, known bool) {
	switch text {
	case "", "TCP":
		return dataplanev1.Protocol_PROTOCOL_TCP, true
	case "UDP":
		return dataplanev1.Protocol_PROTOCOL_UDP, true
	case "SCTP":
		return dataplanev1.Protocol_PROTOCOL_UNSPECIFIED, true
	default:
		return dataplanev1.Protocol_PROTOCOL_UNSPECIFIED, false
	}
}

// ValidPort tells whether a number is a port.
func ValidPort(port int32) bool { return port >= 1 && port <= 65535 }

func parsePorts(object *model.Service, problems *problem.List) []Port {
	if len(object.Ports) == 0 {
		problems.Add("spec.ports", "no port is given: the service is not served")
	}
	usable := make([]Port, 0, len(object.Ports))
	for i := range object.Ports {
		if port, ok := parsePort(object, i, usable, problems); ok {
			usable = append(usable, port)
		}
	}
	slices.SortFunc(usable, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return usable
}

// parsePort reads one port; before holds the usable ones that precede it.
func parsePort(object *model.Service, index int, before []Port, problems *problem.List) (Port, bool) {
	spec := &object.Ports[index]
	field := func(name string) string { return fmt.Sprintf("spec.ports[%d].%s", index, name) }
	protocol, known := ParseProtocol(spec.Protocol)
	usable := true
	switch {
	case !known:
		problems.Add(field("protocol"), "%q is not a protocol: the port is not served", spec.Protocol)
		usable = false
	case protocol == dataplanev1.Protocol_PROTOCOL_UNSPECIFIED:
		problems.Add(field("protocol"), "%s is not supported: the port is not served", spec.Protocol)
		usable = false
	}
	if !ValidPort(spec.Port) {
		problems.Add(field("port"), "%d is not a port (1 to 65535): the port is not served", spec.Port)
		usable = false
	}
	if spec.TargetPort != 0 && !ValidPort(spec.TargetPort) {
		problems.Add(field("targetPort"), "%d is not a port (1 to 65535): ignored; backends are reached at the ports of their slices", spec.TargetPort)
	}
	port := Port{Name: spec.Name, Protocol: protocol, Port: uint16(spec.Port), Index: index}
	switch {
	case spec.NodePort == 0:
	case !ValidPort(spec.NodePort):
		problems.Add(field("nodePort"), "%d is not a port (1 to 65535): not served at the nodes", spec.NodePort)
	default:
		port.NodePort = uint16(spec.NodePort)
	}
	if !usable {
		return Port{}, false
	}
	for _, other := range before {
		if other.Protocol != port.Protocol {
			continue
		}
		if other.Name == port.Name {
			problems.Add(field("name"), "%q is the name of spec.ports[%d] too: the port is not served",
				port.Name, other.Index)
			usable = false
		}
		if other.Port == port.Port {
			problems.Add(field("port"), "%s is that of spec.ports[%d] too: the port is not served",
				port, other.Index)
			usable = false
		}
	}
	if !usable {
		return Port{}, false
	}
	for _, other := range before {
		if port.NodePort != 0 && other.Protocol == port.Protocol && other.NodePort == port.NodePort {
			problems.Add(field("nodePort"), "%d is that of spec.ports[%d] too: not served at the nodes",
				port.NodePort, other.Index)
			port.NodePort = 0
		}
	}
	return port, true
}
