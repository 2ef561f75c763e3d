// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	corev1 "k8s.io/api/core/v1"
)

// frontendID is what tells frontends apart.
type frontendID struct {
	address  netip.AddrPort
	protocol corev1.Protocol
}

func (f frontendID) String() string { return fmt.Sprintf("%s/%s", f.address, f.protocol) }

// frontend is what a frontend is to be, or is.
type frontend struct {
	backends []string // sorted
	affinity uint32   // seconds
}

func (f frontend) String() string {
	text := fmt.Sprintf("backends %v", f.backends)
	if f.affinity > 0 {
		text += fmt.Sprintf(" and affinity for %d s", f.affinity)
	}
	return text
}

func (f frontend) equals(other frontend) bool {
	return slices.Equal(f.backends, other.backends) && f.affinity == other.affinity
}

// WaitServices waits until the kernel of the agent's node holds exactly the
// frontends and backends of each of the services.
func (a *Agent) WaitServices(ctx context.Context, services ...Service) error {
	for _, service := range services {
		if err := a.wait(ctx, func() error { return a.CheckService(ctx, service) }); err != nil {
			return err
		}
	}
	return nil
}

// WaitNoService waits until the kernel of the agent's node knows nothing of
// the service.
func (a *Agent) WaitNoService(ctx context.Context, service Service) error {
	return a.wait(ctx, func() error {
		frontends, err := a.frontends(ctx, service)
		if err == nil && len(frontends) > 0 {
			err = fmt.Errorf("service %s still has frontends %v", service.Name, frontends)
		}
		return err
	})
}

func (a *Agent) wait(ctx context.Context, condition func() error) error {
	err := Eventually(ctx, func() error {
		if err := a.Process.Running(); err != nil {
			return err
		}
		return condition()
	})
	if err != nil {
		return fmt.Errorf("%s: %w; the agent's log ends with:\n%s", a.Node.Name, err, a.Process.LogTail(10))
	}
	return nil
}

// CheckService tells in what the kernel of the agent's node differs from the
// service.
func (a *Agent) CheckService(ctx context.Context, service Service) error {
	got, err := a.frontends(ctx, service)
	if err != nil {
		return err
	}
	want := a.wantFrontends(service)
	for id, wanted := range want {
		if actual, ok := got[id]; !ok || !actual.equals(wanted) {
			return fmt.Errorf("service %s: frontend %v has %s, want %s", service.Name, id, actual, wanted)
		}
	}
	for id := range got {
		if _, ok := want[id]; !ok && !id.address.Addr().IsLoopback() {
			return fmt.Errorf("service %s: frontend %v is not wanted", service.Name, id)
		}
	}
	return nil
}

// wantFrontends are those the agent's node is to have, but for the node ports
// on loopback.
func (a *Agent) wantFrontends(service Service) map[frontendID]frontend {
	want := map[frontendID]frontend{}
	families := service.families()
	for _, port := range service.Ports {
		add := func(addr netip.Addr, number uint16) {
			if !slices.Contains(families, familyOf(addr)) {
				return
			}
			backends := []string{}
			for _, endpoint := range service.Endpoints {
				if endpoint.Terminating {
					continue
				}
				if ip := endpoint.ip(familyOf(addr)); ip.IsValid() {
					backends = append(backends, netip.AddrPortFrom(ip, port.Target).String())
				}
			}
			slices.Sort(backends)
			want[frontendID{netip.AddrPortFrom(addr, number), port.protocol()}] = frontend{backends, uint32(service.Affinity)}
		}
		for _, addr := range slices.Concat(service.ClusterIPs, service.ExternalIPs, service.LoadBalancerIPs) {
			add(addr, port.Port)
		}
		if port.NodePort != 0 {
			add(a.Node.IPv4, port.NodePort)
			add(a.Node.IPv6, port.NodePort)
		}
	}
	return want
}

// frontends are those the kernel has of a service, with sorted backends.
func (a *Agent) frontends(ctx context.Context, service Service) (map[frontendID]frontend, error) {
	stream, err := a.ListServices(ctx, &agentv1.ListServicesRequest{Namespace: service.namespace(), Name: service.Name})
	if err != nil {
		return nil, err
	}
	frontends := map[frontendID]frontend{}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return frontends, nil
		}
		if err != nil {
			return nil, err
		}
		for _, listed := range answer.GetFrontends() {
			addr, err := netip.ParseAddr(listed.GetAddress())
			if err != nil {
				return nil, fmt.Errorf("service %s: frontend: %w", service.Name, err)
			}
			backends := []string{}
			for _, backend := range listed.GetBackends() {
				ip, err := netip.ParseAddr(backend.GetAddress())
				if err != nil {
					return nil, fmt.Errorf("service %s: backend: %w", service.Name, err)
				}
				backends = append(backends, netip.AddrPortFrom(ip, uint16(backend.GetPort())).String())
			}
			slices.Sort(backends)
			id := frontendID{netip.AddrPortFrom(addr, uint16(listed.GetPort())), protocolName(listed.GetProtocol())}
			frontends[id] = frontend{backends, listed.GetAffinitySeconds()}
		}
	}
}

func protocolName(protocol dataplanev1.Protocol) corev1.Protocol {
	return corev1.Protocol(strings.TrimPrefix(protocol.String(), "PROTOCOL_"))
}
