// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// kernelReport is what `millrace-agent preflight -o json` prints.
type kernelReport struct {
	Kernel   string
	Features []struct {
		Name                      string
		Available, Used, Required bool
		Consequence, Error        string
	}
	Programs []struct {
		Name                               string
		Instructions, VerifiedInstructions int
	}
}

// preflight runs the agent's preflight and returns its report, what it said on
// standard error, and its status.
func preflight(t *testing.T, args ...string) (report kernelReport, said string, status int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(binaries.Agent, append([]string{"preflight", "-o", "json"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("preflight's report: %v\n%s%s", err, stdout.String(), stderr.String())
	}
	return report, stderr.String(), cmd.ProcessState.ExitCode()
}

// TestPreflight compares what preflight says of the kernel with its status, and
// each feature with what is to follow from it.
func TestPreflight(t *testing.T) {
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	report, said, status := preflight(t)
	var missing []string
	for _, f := range report.Features {
		t.Logf("%s: found %t, used %t: %s %s", f.Name, f.Available, f.Used, f.Consequence, f.Error)
		if f.Used != f.Available || f.Available == (f.Consequence != "") || f.Available == (f.Error != "") {
			t.Errorf("%+v", f)
		}
		if f.Required && !f.Available {
			missing = append(missing, f.Name)
		}
	}
	if report.Kernel == "" || len(report.Features) < 10 {
		t.Errorf("a poor report: %+v", report)
	}
	switch {
	case len(missing) == 0 && (status != 0 || said != "" || len(report.Programs) < 10):
		t.Errorf("nothing is missing: status %d, %d programs, said %q", status, len(report.Programs), said)
	case len(missing) > 0 && (status != 1 || strings.Count(said, "\n") != 1 || !strings.Contains(said, missing[0])):
		t.Errorf("%q are missing: status %d, said %q", missing, status, said)
	}
}

// startAlone runs the agent outside of every cluster, which must refuse, and
// returns what it said. Everything that it would make must not be there then.
func startAlone(t *testing.T, attr *syscall.SysProcAttr, bpfDir string) string {
	t.Helper()
	root, err := testbed.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(binaries.Agent, "--node-name", "alone", "--bpf-dir", bpfDir, "--cgroup-root", root,
		"--state-dir", filepath.Join(dir, "state"), "--socket", filepath.Join(dir, "agent.sock"),
		"--listen", "", "--metrics-listen", "", "--sysctl-dir", "/proc/sys")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Dir = &said, &said, attr, "/"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	cmd.Wait() //nolint:errcheck // the status is looked at
	if status := cmd.ProcessState.ExitCode(); status != 1 {
		t.Errorf("status %d, want 1", status)
	}
	for _, path := range []string{bpfDir, filepath.Join(dir, "state"), filepath.Join(dir, "agent.sock")} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left (%v)", path, err)
		}
	}
	return said.String()
}

// refusalLine is the one line for people among what a refusing agent said; the
// others are the log's.
func refusalLine(t *testing.T, said string) string {
	t.Helper()
	var lines []string
	for _, line := range strings.Split(strings.TrimSpace(said), "\n") {
		if !strings.HasPrefix(line, "{") {
			lines = append(lines, line)
		}
	}
	if len(lines) != 1 {
		t.Errorf("%d lines for people, want 1:\n%s", len(lines), said)
	}
	return strings.Join(lines, "\n")
}

// TestUnsuitableKernel starts the agent on a kernel that lacks what is required:
// it says what in one line, for people, and in one record of its log, and leaves
// nothing behind.
func TestUnsuitableKernel(t *testing.T) {
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	report, _, status := preflight(t)
	if status == 0 {
		t.Skipf("kernel %s has everything that is required", report.Kernel)
	}
	said := startAlone(t, nil, "/sys/fs/bpf/millrace-alone")
	t.Log(said)
	line := refusalLine(t, said)
	var record struct {
		Level, Kernel string
		Missing       []string
	}
	for _, text := range strings.Split(said, "\n") {
		if strings.HasPrefix(text, "{") {
			if err := json.Unmarshal([]byte(text), &record); err != nil {
				t.Error(err)
			}
		}
	}
	if record.Level != "error" || record.Kernel != report.Kernel || len(record.Missing) == 0 {
		t.Errorf("the log's record: %+v", record)
	}
	for _, f := range report.Features {
		tried := !strings.Contains(f.Error, "not tried")
		if f.Required && !f.Available && tried && !strings.Contains(line, f.Name) {
			t.Errorf("%q does not name %s", line, f.Name)
		}
	}
}

// TestWithoutCapabilities starts the agent without the right to use BPF.
func TestWithoutCapabilities(t *testing.T) {
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	const nobody = 65534
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0777"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // nothing is in it
	for _, path := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	said := startAlone(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, filepath.Join(dir, "millrace"))
	if line := refusalLine(t, said); !strings.Contains(line, "CAP_BPF") {
		t.Errorf("got %q", line)
	}
}

// TestWithoutFeatures runs agents that leave everything unused that newer
// kernels have, as if this were the oldest that is supported: all paths work,
// also over a restart, after which the agents use everything again.
func TestWithoutFeatures(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2, AgentArgs: []string{"--without=tcx,set-retval,mptcp-sock"}})
	all := paths(t, stack)
	check := func(when string, used bool) {
		t.Helper()
		for _, agent := range stack.Agents {
			status, err := agent.GetStatus(harness.Limit(t, 10*time.Second), &agentv1.GetStatusRequest{})
			if err != nil {
				t.Fatal(err)
			}
			tcx := false
			for _, f := range status.GetDataplane().GetFeatures() {
				if !f.GetRequired() && (f.GetUsed() != (used && f.GetAvailable()) || !f.GetUsed() && f.GetConsequence() == "") {
					t.Errorf("%s: %v", when, f)
				}
				tcx = tcx || f.GetName() == "tcx" && f.GetUsed()
			}
			kind := "clsact/"
			if tcx {
				kind = "tcx/"
			}
			for _, a := range status.GetDataplane().GetAttachments() {
				if !strings.HasPrefix(a.GetHook(), kind) && !strings.HasPrefix(a.GetHook(), "cgroup/") {
					t.Errorf("%s: %v, want %s", when, a, kind)
				}
			}
		}
	}
	check("without", false)
	open := converse(t, all)
	goOn(t, "without", open)
	callAnew(t, "without", all)
	empty := newService("empty", 9)
	serve(t, stack, empty)
	for _, agent := range stack.Agents {
		if err := agent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		again, err := stack.StartAgent(agent.Node, testbed.AgentOptions{Binaries: stack.Binaries})
		if err != nil {
			t.Fatal(err)
		}
		*agent = *again
		if err := agent.WaitInSync(harness.Limit(t, 60*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	check("with", true)
	goOn(t, "with", open)
	callAnew(t, "with", all)
}
