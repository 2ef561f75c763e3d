// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// fastBackoff suits processes on the same machine.
var fastBackoff = backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}

// CalculatorOptions tell how to start a calculator.
type CalculatorOptions struct {
	Binaries Binaries
	// Kubeconfig makes it read from an API server that the control host
	// reaches, instead of from the cluster's manifest directory.
	Kubeconfig string
	// Replica counts the cluster's calculators from 0: it tells them apart
	// by name, port and socket.
	Replica int
	// Args are added to the command line.
	Args []string
}

// Calculator is a running calculator.
type Calculator struct {
	calculatorv1.CalculatorServiceClient
	// Process it is.
	Process *Process

	cluster *Cluster
	options CalculatorOptions
	conn    *grpc.ClientConn
}

// CalculatorSocket is the path of the first calculator's unix socket.
func (c *Cluster) CalculatorSocket() string { return c.ReplicaSocket(0) }

func (c *Cluster) ReplicaSocket(replica int) string {
	return filepath.Join(c.Dir, replicaName(replica)+".sock")
}

func replicaName(replica int) string {
	if replica == 0 {
		return "calculator"
	}
	return fmt.Sprintf("calculator-%d", replica+1)
}

// StartCalculator starts a calculator on the control host and returns when it
// answers queries.
func (c *Cluster) StartCalculator(options CalculatorOptions) (*Calculator, error) {
	conn, err := dialUnix(c.ReplicaSocket(options.Replica))
	if err != nil {
		return nil, err
	}
	calculator := &Calculator{
		CalculatorServiceClient: calculatorv1.NewCalculatorServiceClient(conn),
		cluster:                 c, options: options, conn: conn,
	}
	return calculator, calculator.Start()
}

// Start starts the calculator again after Process has ended.
func (c *Calculator) Start() error {
	args := []string{
		c.options.Binaries.Calculator,
		"--listen", fmt.Sprintf("0.0.0.0:%d", CalculatorPort+c.options.Replica),
		"--socket", c.cluster.ReplicaSocket(c.options.Replica),
		"--metrics-listen", fmt.Sprintf("127.0.0.1:%d", MetricsPort+c.options.Replica),
		"--insecure",
	}
	if c.options.Kubeconfig != "" {
		args = append(args, "--source", "kube", "--kubeconfig", c.options.Kubeconfig)
	} else {
		args = append(args, "--source", "dir", "--manifests", c.cluster.ManifestDir())
	}
	process, err := c.cluster.Control.Start(replicaName(c.options.Replica), append(args, c.options.Args...)...)
	if err != nil {
		return err
	}
	c.Process = process
	return waitSocket(process, c.cluster.ReplicaSocket(c.options.Replica))
}

// WaitSynced waits until the calculator has read its source.
func (c *Calculator) WaitSynced(ctx context.Context) error {
	err := Eventually(ctx, func() error {
		if err := c.Process.Running(); err != nil {
			return err
		}
		status, err := c.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if !status.GetSynced() {
			return fmt.Errorf("calculator has not read its source: %v", status.GetProblems())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w; its log ends with:\n%s", err, c.Process.LogTail(15))
	}
	return nil
}
