// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/bench/loadgen"
)

// measureHook measures what the connect hook takes by the kernel's own
// statistics, while clients connect to one service of a large cluster. The
// statistics include the 25 to 30 ns that taking them costs.
func measureHook(ctx context.Context, r *run) (err error) {
	r.progress("connect hook at %d services", r.Services)
	stack, err := startStack(ctx, r, "hook", r.Services)
	if stack != nil {
		defer func() { err = errors.Join(err, stack.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := startServers(stack.Cluster); err != nil {
		return err
	}
	s := &system{name: "hook", kind: millrace, large: true, cluster: stack.Cluster}
	if err := s.waitAnswers(ctx, r.Family); err != nil {
		return err
	}
	pin, err := findPin(stack.Nodes[0].BPFDir, fmt.Sprintf("sock_connect%d", r.Family))
	if err != nil {
		return err
	}
	program, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return fmt.Errorf("opening the connect hook: %w", err)
	}
	defer program.Close()
	enabled, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("turning statistics of programs on: %w", err)
	}
	defer enabled.Close()
	for _, p := range paths[:2] { // the other clients have no hooks
		var times []float64
		for range r.Rounds {
			took, err := hookTime(r, s, p, program)
			if err != nil {
				return err
			}
			times = append(times, float64(took.Nanoseconds()))
		}
		r.results.add(fmt.Sprintf("connect hook by bpf_stats, %s, %d services", p.name, r.Services), median(times), "ns")
	}
	return nil
}

// hookTime returns what a run of the program took on average during a load.
func hookTime(r *run, s *system, p path, program *ebpf.Program) (time.Duration, error) {
	before, err := program.Stats()
	if err != nil {
		return 0, fmt.Errorf("reading statistics: %w", err)
	}
	if _, err := runLoad(p.client(s.cluster), loadgen.Load{
		Mode: loadgen.ModeConnect, Target: s.target(p, r.Family), Connections: r.Connections, Duration: r.Duration,
	}); err != nil {
		return 0, err
	}
	after, err := program.Stats()
	if err != nil {
		return 0, fmt.Errorf("reading statistics: %w", err)
	}
	runs := after.RunCount - before.RunCount
	if runs == 0 {
		return 0, errors.New("the connect hook did not run")
	}
	return (after.Runtime - before.Runtime) / time.Duration(runs), nil
}
