// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"github.com/millrace-project/millrace/test/bench/loadgen"
	"github.com/millrace-project/millrace/test/testbed"
)

// serverPort is where the servers listen in their pods.
const serverPort = 8080

// Each end has a core of its own: their rates then do not depend on where the
// scheduler happens to put them.
const (
	clientCPU = 0
	serverCPU = 1
)

// serveMain is the server's process. It serves until it is told to end.
func serveMain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("millrace-bench serve", flag.ContinueOnError)
	cpu := flags.Int("cpu", serverCPU, "core to run on, any if negative")
	if err := flags.Parse(args); err != nil {
		return err
	}
	addr := netip.AddrPortFrom(netip.IPv6Unspecified(), serverPort)
	server, err := loadgen.Listen(addr)
	if err != nil {
		return err
	}
	defer server.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a pipe: %w", err)
	}
	defer r.Close()
	context.AfterFunc(ctx, func() { w.Close() })
	if err := loadgen.Isolate(*cpu); err != nil {
		return err
	}
	return server.Serve(int(r.Fd()))
}

// loadMain is a client's process: one load, then its result as JSON.
func loadMain(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("millrace-bench load", flag.ContinueOnError)
	cpu := flags.Int("cpu", clientCPU, "core to run on, any if negative")
	mode := flags.String("mode", "", "connect, request or stream")
	target := flags.String("target", "", "address and port to dial")
	load := loadgen.Load{}
	flags.IntVar(&load.Connections, "connections", 1, "connections at once")
	flags.DurationVar(&load.Warmup, "warmup", 0, "time before anything is counted")
	flags.DurationVar(&load.Duration, "duration", time.Second, "time to count")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if load.Mode, err = loadgen.ParseMode(*mode); err != nil {
		return err
	}
	if load.Target, err = netip.ParseAddrPort(*target); err != nil {
		return fmt.Errorf("-target: %w", err)
	}
	if err := loadgen.Isolate(*cpu); err != nil {
		return err
	}
	result, err := loadgen.Run(load)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(result)
}

// startServer starts a server on the host.
func startServer(host *testbed.Host) (*testbed.Process, error) {
	return host.Start("server-"+host.Name, selfPath, "serve")
}

// runLoad runs a load on the host, in its namespace and cgroup.
func runLoad(host *testbed.Host, load loadgen.Load) (loadgen.Result, error) {
	out, err := host.Run(selfPath, "load", "-mode", load.Mode.String(), "-target", load.Target.String(),
		"-connections", fmt.Sprint(load.Connections), "-warmup", load.Warmup.String(), "-duration", load.Duration.String())
	if err != nil {
		return loadgen.Result{}, fmt.Errorf("load on %s: %w", host.Name, err)
	}
	var result loadgen.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return loadgen.Result{}, fmt.Errorf("load on %s: reading its result: %w", host.Name, err)
	}
	return result, nil
}

// selfPath is this program.
const selfPath = "/proc/self/exe"
