// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// measureStart measures how long an agent that finds empty maps takes to
// program a large cluster, and what it and the calculator keep in memory then.
func measureStart(ctx context.Context, r *run) (err error) {
	r.progress("agent starts at %d services with %d backends each", r.Services, fillerBackends)
	stack, err := startStack(ctx, r, "start", r.Services)
	if stack != nil {
		defer func() { err = errors.Join(err, stack.Close()) }()
	}
	if err != nil {
		return err
	}
	agent := stack.Agents[2]
	var fromConnect, fromProcess, resident, peak []float64
	for range r.Rounds {
		connect, process, err := coldStart(ctx, agent)
		if err != nil {
			return err
		}
		fromConnect, fromProcess = append(fromConnect, connect.Seconds()), append(fromProcess, process.Seconds())
		memory, err := memoryOf(agent.Process.PID())
		if err != nil {
			return err
		}
		resident, peak = append(resident, memory.resident), append(peak, memory.peak)
	}
	calculator, err := memoryOf(stack.Calculator.Process.PID())
	if err != nil {
		return err
	}
	size := fmt.Sprintf("%d services with %d backends", r.Services, fillerBackends)
	r.results.add("agent start with empty maps, connected to in sync, "+size, median(fromConnect), "s")
	r.results.add("agent start with empty maps, process started to in sync, "+size, median(fromProcess), "s")
	r.results.add("agent RSS, "+size, median(resident), "MiB")
	r.results.add("agent RSS, highest, "+size, median(peak), "MiB")
	r.results.add("calculator RSS, "+size, calculator.resident, "MiB")
	r.results.add("calculator RSS, highest, "+size, calculator.peak, "MiB")
	return nil
}

// coldStart starts an agent on a node that keeps nothing of the one before, and
// returns how long it took from connecting, and from starting, to in sync.
func coldStart(ctx context.Context, agent *testbed.Agent) (fromConnect, fromProcess time.Duration, err error) {
	if err := agent.Process.Stop(); err != nil {
		return 0, 0, err
	}
	for _, dir := range []string{agent.Node.BPFDir, agent.Node.StateDir} {
		if err := emptyDir(dir); err != nil {
			return 0, 0, err
		}
	}
	begin := time.Now()
	if err := agent.Start(); err != nil {
		return 0, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var connected, synced time.Time
	err = testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		synced = time.Now()
		stream := status.GetCalculator()
		connected = stream.GetConnectTime().AsTime()
		if !stream.GetConnected() || !stream.GetInSync() || stream.GetProgrammedRevision() < stream.GetReceivedRevision() {
			return fmt.Errorf("the agent is not in sync: %v", stream)
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	return synced.Sub(connected), synced.Sub(begin), nil
}

// emptyDir removes what is in a directory.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("emptying a directory: %w", err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("emptying a directory: %w", err)
		}
	}
	return nil
}

// memory of a process, in MiB.
type memory struct{ resident, peak float64 }

// memoryOf reads what the kernel knows of a process's memory.
func memoryOf(pid int) (memory, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, fmt.Errorf("reading the memory of a process: %w", err)
	}
	var m memory
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		value, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			m.resident = value / 1024
		case "VmHWM:":
			m.peak = value / 1024
		}
	}
	if m.resident == 0 || m.peak == 0 {
		return memory{}, fmt.Errorf("the memory of process %d is not known", pid)
	}
	return m, nil
}
