// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"

	"github.com/millrace-project/millrace/test/probe"
)

// Stack is a cluster with Millrace running on it: a calculator that reads the
// cluster's manifest directory and an agent on every node.
type Stack struct {
	*Cluster
	Binaries   Binaries
	Calculator *Calculator
	// Agents in the order of the nodes.
	Agents []*Agent
}

// StartStack builds a cluster, writes the manifests of its nodes and pods,
// and returns when all agents are in sync.
func StartStack(ctx context.Context, options Options, binaries Binaries) (*Stack, error) {
	cluster, err := Start(options)
	if err != nil {
		return nil, err
	}
	stack := &Stack{Cluster: cluster, Binaries: binaries}
	if err := stack.Up(ctx); err != nil {
		return stack, fmt.Errorf("start Millrace: %w", err)
	}
	return stack, nil
}

// Up writes the manifests of nodes and pods, starts the programs and waits
// until all agents are in sync.
func (s *Stack) Up(ctx context.Context) error {
	if err := s.ApplyNodes(); err != nil {
		return err
	}
	var err error
	if s.Calculator, err = s.StartCalculator(CalculatorOptions{Binaries: s.Binaries}); err != nil {
		return err
	}
	if err := s.Calculator.WaitSynced(ctx); err != nil {
		return err
	}
	s.Agents, err = s.StartAgents(ctx, AgentOptions{Binaries: s.Binaries, Args: s.Options.AgentArgs, Under: s.Options.AgentUnder})
	return err
}

// Serve applies services and waits until every node has them.
func (s *Stack) Serve(ctx context.Context, services ...Service) error {
	for _, service := range services {
		if err := s.ApplyService(service); err != nil {
			return err
		}
	}
	for _, agent := range s.Agents {
		if err := agent.WaitServices(ctx, services...); err != nil {
			return err
		}
	}
	return nil
}

// Unserve deletes services and waits until no node has them.
func (s *Stack) Unserve(ctx context.Context, services ...Service) error {
	for _, service := range services {
		if err := s.DeleteService(service); err != nil {
			return err
		}
	}
	for _, agent := range s.Agents {
		for _, service := range services {
			if err := agent.WaitNoService(ctx, service); err != nil {
				return err
			}
		}
	}
	return nil
}

// ServeEcho starts echo servers on hosts, TCP and UDP, IPv4 and IPv6.
func (s *Stack) ServeEcho(port uint16, hosts ...*Host) error {
	for _, host := range hosts {
		prober, err := s.Probe(host)
		if err != nil {
			return err
		}
		if err := prober.Serve(port); err != nil {
			return err
		}
	}
	return nil
}

// Probe is Cluster.Probe with the stack's binaries.
func (s *Stack) Probe(host *Host) (*Prober, error) { return s.Cluster.Probe(host, s.Binaries) }

// ProbeBypass is Cluster.ProbeBypass with the stack's binaries.
func (s *Stack) ProbeBypass(host *Host) (*Prober, error) {
	return s.Cluster.ProbeBypass(host, s.Binaries)
}

// Ask makes one exchange from a host on a socket of its own.
func (s *Stack) Ask(client *Host, dial probe.Dial) (probe.Answer, error) {
	prober, err := s.Probe(client)
	if err != nil {
		return probe.Answer{}, err
	}
	return prober.Once(dial, probe.Exchange{})
}
