// SPDX-License-Identifier: Apache-2.0

package canonical

import dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"

// The functions here encode one message each. Field numbers are those of the
// proto files, so that a reader can compare them.

func encodeNodeConfig(e *encoder, m *dataplanev1.NodeConfig) {
	e.string(1, m.GetNodeName())
	e.uint(2, uint64(m.GetMode()))
	if ports := m.GetNodePorts(); ports != nil {
		e.raw(3)
		e.uint(1, uint64(ports.GetFirst()))
		e.uint(2, uint64(ports.GetLast()))
		e.raw(end)
	}
}

func encodeNode(e *encoder, m *dataplanev1.Node) {
	e.string(1, m.GetName())
	e.bytesList(2, m.GetInternalAddresses())
	e.bytesList(3, m.GetExternalAddresses())
	messages(e, 4, m.GetPodCidrs(), encodePrefix)
	e.string(5, m.GetZone())
}

func encodePrefix(e *encoder, m *dataplanev1.Prefix) {
	e.bytes(1, m.GetAddress())
	e.uint(2, uint64(m.GetLength()))
}

func encodeEndpoint(e *encoder, m *dataplanev1.Endpoint) {
	e.string(1, m.GetNamespace())
	e.string(2, m.GetName())
	e.string(3, m.GetUid())
	e.bytesList(4, m.GetAddresses())
}

func encodeService(e *encoder, m *dataplanev1.Service) {
	e.string(1, m.GetNamespace())
	e.string(2, m.GetName())
	e.bytesList(3, m.GetClusterIps())
	messages(e, 4, m.GetExternalIps(), encodeServiceAddress)
	messages(e, 5, m.GetLoadBalancerIps(), encodeServiceAddress)
	messages(e, 6, m.GetPorts(), encodeServicePort)
	e.uint(7, uint64(m.GetBackendSlices()))
	if affinity := m.GetSessionAffinity(); affinity != nil {
		e.raw(8)
		e.uint(1, uint64(affinity.GetTimeoutSeconds()))
		e.raw(end)
	}
}

func encodeServiceAddress(e *encoder, m *dataplanev1.ServiceAddress) {
	e.bytes(1, m.GetAddress())
	e.uints(2, m.GetPorts())
}

func encodeServicePort(e *encoder, m *dataplanev1.ServicePort) {
	e.string(1, m.GetName())
	e.uint(2, uint64(m.GetProtocol()))
	e.uint(3, uint64(m.GetPort()))
	e.uint(4, uint64(m.GetNodePort()))
}

func encodeBackendSlice(e *encoder, m *dataplanev1.BackendSlice) {
	e.string(1, m.GetNamespace())
	e.string(2, m.GetName())
	e.uint(3, uint64(m.GetChunk()))
	messages(e, 4, m.GetPortSets(), encodePortSet)
	messages(e, 5, m.GetBackends(), encodeBackend)
}

func encodePortSet(e *encoder, m *dataplanev1.PortSet) {
	messages(e, 1, m.GetPorts(), encodeTargetPort)
}

func encodeTargetPort(e *encoder, m *dataplanev1.TargetPort) {
	e.string(1, m.GetName())
	e.uint(2, uint64(m.GetProtocol()))
	e.uint(3, uint64(m.GetPort()))
}

func encodeBackend(e *encoder, m *dataplanev1.Backend) {
	e.bytes(1, m.GetAddress())
	e.uint(2, uint64(m.GetPortSet()))
	e.string(3, m.GetNode())
	e.string(4, m.GetZone())
	e.bool(5, m.GetReady())
	e.bool(6, m.GetServing())
	e.bool(7, m.GetTerminating())
}

func encodeCalculators(e *encoder, m *dataplanev1.Calculators) {
	e.strings(1, m.GetAddresses())
	e.bytesList(2, m.GetAuthorities())
}
