// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// diskSize is that of the state directory's filesystem, in bytes.
const diskSize = 256 << 10

// onDisk gives the node's state directory a small filesystem of its own, and the
// agent a place in memory of its own.
func onDisk(t *testing.T) (settings, string) {
	fallback := filepath.Join(t.TempDir(), "memory")
	return settings{
		args: []string{"--state-fallback-dir", fallback},
		prepare: func(w *world) {
			if err := unix.Mount("tmpfs", w.node.StateDir, "tmpfs", 0, fmt.Sprintf("size=%d", diskSize)); err != nil {
				t.Fatal(err)
			}
		},
	}, fallback
}

// remount makes the state directory read-only or writable.
func (w *world) remount(t *testing.T, flags uintptr) {
	t.Helper()
	err := testbed.Within(5*time.Second, func() error { // busy while somebody writes
		return unix.Mount("", w.node.StateDir, "", unix.MS_REMOUNT|flags, fmt.Sprintf("size=%d", diskSize))
	})
	if err != nil {
		t.Fatalf("remount: %v", err)
	}
}

// fill leaves no room in the state directory; the result gives it back.
func (w *world) fill(t *testing.T) (free func()) {
	t.Helper()
	path := filepath.Join(w.node.StateDir, "ballast")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for page := make([]byte, 4096); err == nil; {
		_, err = file.Write(page)
	}
	if file.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// waitProblem waits until the kernel holds what the model says and the status,
// the calculator and the metrics tell of a problem with that text.
func (w *world) waitProblem(t *testing.T, when, text string) {
	t.Helper()
	err := w.wait(time.Minute, func(ctx context.Context) error { return w.told(ctx, text) })
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if err := w.metric("millrace_agent_state_log_in_memory 1"); err != nil {
		t.Errorf("%s: %v", when, err)
	}
	w.checkTraffic(t, when)
}

// told tells whether status and calculator know of a problem.
func (w *world) told(ctx context.Context, text string) error {
	status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	if problems := strings.Join(status.GetProblems(), "; "); !strings.Contains(problems, text) {
		return fmt.Errorf("status tells %q, not %q", problems, text)
	}
	nodes, err := w.stack.Calculator.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
	if err != nil {
		return err
	}
	for _, node := range nodes.GetNodes() {
		if strings.Contains(fmt.Sprint(node), text) {
			return nil
		}
	}
	return fmt.Errorf("the calculator does not know of %q: %v", text, nodes.GetNodes())
}

// metric looks for a line among the agent's metrics.
func (w *world) metric(line string) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: w.node.DialContext}}
	answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", testbed.MetricsPort))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if lines.Text() == line {
			return nil
		}
	}
	return errors.Join(lines.Err(), fmt.Errorf("no metric %q", line))
}

// nextChange makes a service look otherwise, and one that has more backends
// than a page of the log has room for.
func (w *world) nextChange(t *testing.T) model {
	t.Helper()
	after := w.now.clone()
	s := after["svc-2"]
	if len(s.Endpoints) == 2 {
		s.Endpoints = slices.Clone(w.backends[1:4])
	} else {
		s.Endpoints = slices.Clone(w.backends[:2])
	}
	after["svc-2"] = s
	large := service(largeNumber)
	for i := range 150 - len(after[large.Name].Endpoints)%2 { // pods that nobody asks
		large.Endpoints = append(large.Endpoints, testbed.Endpoint{NodeName: "node-2",
			IPv4: netip.AddrFrom4([4]byte{10, 244, 2, byte(100 + i)}),
			IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:10:244:2::%x", 0x100+i))})
	}
	after[large.Name] = large
	return after
}

// restart kills the agent and starts it again.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.kill(t)
	w.launch(t)
}

// TestDisk lets the state directory fail in each way while traffic flows: what
// changes is programmed all the same, the fault is told, and it ends by itself
// once the disk is well. An agent that is killed meanwhile goes on where it was.
func TestDisk(t *testing.T) {
	set, fallback := onDisk(t)
	w := start(t, set)
	w.startTraffic(t, w.now["svc-1"])
	faults := []struct {
		name, tells string
		begin       func() (end func())
	}{
		{"full", "no space left on device", func() func() { return w.fill(t) }},
		{"read-only", "read-only file system", func() func() {
			// A writer keeps a filesystem from becoming read-only by remounting;
			// so does a disk's error in the end, once the file is closed.
			w.kill(t)
			w.remount(t, unix.MS_RDONLY)
			w.launch(t)
			return func() { w.remount(t, 0) }
		}},
		{"fsync fails", "input/output error", func() func() {
			w.supervisor.Set(func(c *syscalls.Call) syscalls.Verdict {
				if strings.HasPrefix(c.Path, w.node.StateDir) && (c.Name == "fsync" || c.Name == "fdatasync") {
					return syscalls.Fail(unix.EIO)
				}
				return syscalls.Continue
			})
			return func() { w.supervisor.Set(nil) }
		}},
		{"writes fail", "input/output error", func() func() {
			w.supervisor.Set(func(c *syscalls.Call) syscalls.Verdict {
				if strings.HasPrefix(c.Path, w.node.StateDir) && c.Name == "write" {
					return syscalls.Fail(unix.EIO)
				}
				return syscalls.Continue
			})
			return func() { w.supervisor.Set(nil) }
		}},
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			end := sync.OnceFunc(f.begin())
			defer end()
			w.apply(t, w.nextChange(t))
			w.waitProblem(t, "fault", f.tells)
			w.withoutCalculator(t, "restarted in the fault without a calculator")
			w.apply(t, w.nextChange(t))
			w.waitProblem(t, "changed after that", f.tells)
			w.restart(t)
			w.waitProblem(t, "restarted in the fault", f.tells)
			end()
			w.mustConverge(t, "the fault is over")
			if left, err := filepath.Glob(filepath.Join(fallback, "*")); err != nil || len(left) > 0 {
				t.Errorf("left in memory: %v, %v", left, err)
			}
			w.withoutCalculator(t, "restarted afterwards without a calculator")
		})
	}
}

// withoutCalculator stops the calculator, restarts the agent and checks that it
// desires what is in the kernel, from the log alone; then all is as before.
func (w *world) withoutCalculator(t *testing.T, when string) {
	t.Helper()
	if err := w.stack.Calculator.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.restart(t)
	err := w.wait(time.Minute, func(ctx context.Context) error {
		if err := w.metric("millrace_agent_in_sync 0"); err != nil {
			return err
		}
		if err := w.noDiff(ctx); err != nil {
			return err
		}
		status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err == nil && status.GetHeld()["SERVICE"] != uint64(len(w.now)) {
			err = fmt.Errorf("the log has %v, want %d services", status.GetHeld(), len(w.now))
		}
		return err
	})
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
	if err := w.stack.Calculator.Start(); err != nil {
		t.Fatal(err)
	}
	w.mustHave(t)
	w.checkTraffic(t, when)
}
