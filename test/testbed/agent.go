// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Ports on which the programs listen inside their namespaces.
const (
	// CalculatorPort is the first calculator's port for agents and for
	// queries, on the control host; other replicas have the following ones.
	CalculatorPort = 7700
	// AgentPort is each agent's port for queries, on its node's loopback.
	AgentPort = 7710
	// MetricsPort serves metrics of calculator and agents, on loopback.
	MetricsPort = 9710
)

// AgentOptions tell how to start an agent.
type AgentOptions struct {
	Binaries Binaries
	// Calculators to dial; the control host's if empty.
	Calculators []string
	// Mounted is the directory with the calculators' ConfigMap; with it there are
	// no others but those given.
	Mounted string
	// Args are added to the command line.
	Args []string
	// Under is the beginning of a command line that runs the agent, for instance
	// a tracer's.
	Under []string
}

// Agent is a running agent.
type Agent struct {
	agentv1.AgentServiceClient
	// Node it runs on.
	Node *Node
	// Process it is.
	Process *Process

	options AgentOptions
	conn    *grpc.ClientConn
}

// StartAgent starts a node's agent and returns when it answers queries.
func (c *Cluster) StartAgent(node *Node, options AgentOptions) (*Agent, error) {
	if len(options.Calculators) == 0 && options.Mounted == "" {
		options.Calculators = []string{c.CalculatorAddress()}
	}
	conn, err := dialUnix(node.Socket)
	if err != nil {
		return nil, err
	}
	agent := &Agent{AgentServiceClient: agentv1.NewAgentServiceClient(conn), Node: node, options: options, conn: conn}
	return agent, agent.Start()
}

// Start starts the agent again after Process has ended, and returns when it
// answers queries.
func (a *Agent) Start() error {
	if err := a.Launch(); err != nil {
		return err
	}
	return waitSocket(a.Process, a.Node.Socket)
}

// Launch is Start without waiting.
func (a *Agent) Launch() error {
	args := append(slices.Clone(a.options.Under),
		a.options.Binaries.Agent,
		"--node-name", a.Node.Name,
		"--bpf-dir", a.Node.BPFDir,
		"--cgroup-root", a.Node.NodeCgroup,
		"--state-dir", a.Node.StateDir,
		"--socket", a.Node.Socket,
		"--listen", fmt.Sprintf("127.0.0.1:%d", AgentPort),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", MetricsPort),
		"--insecure",
	)
	if a.options.Mounted != "" {
		args = append(args, "--calculators-dir", a.options.Mounted)
	}
	for _, calculator := range a.options.Calculators {
		args = append(args, "--calculator", calculator)
	}
	process, err := a.Node.Host.Start("agent-"+a.Node.Name, append(args, a.options.Args...)...)
	if err != nil {
		return err
	}
	a.Process = process
	return nil
}

// WaitInSync waits until the agent has received everything and programmed
// it.
func (a *Agent) WaitInSync(ctx context.Context) error {
	err := Eventually(ctx, func() error {
		if err := a.Process.Running(); err != nil {
			return err
		}
		status, err := a.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		stream := status.GetCalculator()
		if !stream.GetConnected() || !stream.GetInSync() || stream.GetProgrammedRevision() < stream.GetReceivedRevision() {
			return fmt.Errorf("agent of %s is not in sync: %v", a.Node.Name, stream)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, a.Process.LogTail(15))
	}
	return nil
}

// CalculatorAddress is where the control host's first calculator listens.
func (c *Cluster) CalculatorAddress() string { return c.ReplicaAddress(0) }

// ReplicaAddress is where a calculator of the control host listens.
func (c *Cluster) ReplicaAddress(replica int) string {
	return netip.AddrPortFrom(c.Control.IPv4, uint16(CalculatorPort+replica)).String()
}

// SetArgs replaces the arguments that are added to the command line of later
// starts.
func (a *Agent) SetArgs(args ...string) { a.options.Args = args }

// SetUnder replaces the beginning of the command line of later starts.
func (a *Agent) SetUnder(under ...string) { a.options.Under = under }

// SetBinary replaces the program of later starts.
func (a *Agent) SetBinary(path string) { a.options.Binaries.Agent = path }

func dialUnix(path string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// A restarted process is back at once, the tests wait for it.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: fastBackoff, MinConnectTimeout: time.Second}))
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", path, err)
	}
	return conn, nil
}

// StartAgents starts an agent on every node and waits until all are in sync.
func (c *Cluster) StartAgents(ctx context.Context, options AgentOptions) ([]*Agent, error) {
	var agents []*Agent
	for _, node := range c.Nodes {
		agent, err := c.StartAgent(node, options)
		if err != nil {
			return nil, err
		}
		agents = append(agents, agent)
	}
	var all error
	for _, agent := range agents {
		all = errors.Join(all, agent.WaitInSync(ctx))
	}
	return agents, all
}
