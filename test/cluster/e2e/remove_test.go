// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/clustertest"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestRemove: a start that is killed is replaced by the next, which works, with
// both families and pods on a bridge; and what is removed leaves nothing.
func TestRemove(t *testing.T) {
	name := fmt.Sprintf("remove-%d", os.Getpid())
	t.Cleanup(func() {
		if err := cluster.Remove(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	killStart(t, name)
	ctx := harness.Limit(t, clustertest.StartTimeout)
	c, err := cluster.Start(ctx, cluster.Options{Name: name, Nodes: 2, Family: cluster.Dual, CNI: cluster.Bridge, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	// What the subtest made is gone when it ends.
	t.Run("Frontends", func(t *testing.T) { newEcho(t, c).check(t) })

	processes := processesOf(t, name)
	programs := pinnedPrograms(t, processes)
	// Directory, cgroup, network namespaces and processes at least.
	if found := leftovers(t, name); len(processes) < 10 || len(programs) == 0 || len(found) < len(processes)+5 {
		t.Fatalf("the cluster has %d processes, %d pinned programs and %d other traces: what it leaves would not be seen",
			len(processes), len(programs), len(found))
	}
	if err := c.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	// Killed processes stay in the table until their parent, or the machine's
	// first process, has collected them.
	if err := testbed.Within(30*time.Second, func() error {
		if left := leftovers(t, name); len(left) > 0 {
			return fmt.Errorf("left are:\n%s", strings.Join(left, "\n"))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for _, id := range programs {
		if err := testbed.Eventually(ctx, func() error { return freed(id) }); err != nil {
			t.Error(err)
		}
	}
	if err := cluster.Remove(ctx, name); err != nil {
		t.Errorf("removing what was removed: %v", err)
	}
}

// killStart starts a cluster with the command and kills it when nodes run.
func killStart(t *testing.T, name string) {
	t.Helper()
	helper := filepath.Join(os.Getenv(testbed.BinDirVariable), "millrace-cluster")
	cmd := exec.CommandContext(t.Context(), helper, "up", "--name", name, "--nodes", "1")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "nodes run") {
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the start ended before it was killed")
	}
	if len(processesOf(t, name)) < 5 {
		t.Fatal("the killed start left no cluster to be replaced")
	}
}

// processesOf finds a cluster's processes by their cgroups.
func processesOf(t *testing.T, name string) []int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range dirs {
		groups, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err == nil && strings.Contains(string(groups), ":/millrace-cluster-"+name+"/") {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// pinnedPrograms returns the ids of BPF programs that are pinned on the nodes
// that the processes are of.
func pinnedPrograms(t *testing.T, pids []int) []ebpf.ProgramID {
	t.Helper()
	var ids []ebpf.ProgramID
	for _, pid := range pids {
		root := fmt.Sprintf("/proc/%d/root/sys/fs/bpf/millrace", pid)
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return nil // not a node's process, or a directory
			}
			program, err := ebpf.LoadPinnedProgram(path, nil)
			if err != nil {
				return nil // a map or a link
			}
			defer program.Close()
			info, err := program.Info()
			if err != nil {
				return err
			}
			if id, ok := info.ID(); ok && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return ids
}

// freed is nil if the kernel has freed a program, which it does a little after
// the last reference is gone.
func freed(id ebpf.ProgramID) error {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for program %d: %w", id, err)
	}
	program.Close()
	return fmt.Errorf("program %d is left", id)
}

// leftovers finds what bears the cluster's name.
func leftovers(t *testing.T, name string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{
		"/var/lib/millrace-clusters/" + name,
		"/run/netns/millrace-" + name + "-*",
		"/sys/fs/cgroup/millrace-cluster-" + name,
		"/sys/fs/cgroup/*/millrace-cluster-" + name,
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, "/millrace-clusters/"+name+"/") {
			left = append(left, "mount: "+line)
		}
	}
	for _, pid := range processesOf(t, name) {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d: %q", pid, args))
	}
	return left
}
