// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

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

// alone runs an agent outside of every cluster, whose node cannot be programmed,
// until it has said so, and stops it. It returns its status and its log. Nothing
// that an agent makes may be there then.
func alone(t *testing.T, attr *syscall.SysProcAttr, bpfDir string) (*agentv1.GetStatusResponse, string) {
	t.Helper()
	root, err := testbed.CgroupRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "agent.sock")
	var said bytes.Buffer
	cmd := exec.Command(binaries.Agent, "--node-name", "alone", "--bpf-dir", bpfDir, "--cgroup-root", root,
		"--calculator", "unix:"+filepath.Join(dir, "nobody.sock"),
		"--state-dir", filepath.Join(dir, "state"), "--state-fallback-dir", "", "--socket", socket,
		"--listen", "", "--metrics-listen", "", "--sysctl-dir", "/proc/sys")
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr, cmd.Dir = &said, &said, attr, "/"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := harness.Limit(t, 60*time.Second)
	status, err := agentv1.NewAgentServiceClient(conn).GetStatus(ctx, &agentv1.GetStatusRequest{}, grpc.WaitForReady(true))
	if signaled := cmd.Process.Signal(syscall.SIGTERM); signaled != nil {
		t.Error(signaled)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if ended := cmd.Wait(); ended != nil || err != nil {
		t.Fatalf("status: %v; end: %v; it said:\n%s", err, ended, said.String())
	}
	for _, path := range []string{bpfDir, filepath.Join(dir, "state"), socket} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was left (%v)", path, err)
		}
	}
	return status, said.String()
}

// unsuitable is what the log says of a node that cannot be programmed.
func unsuitable(t *testing.T, said string) (problems []string) {
	t.Helper()
	for _, text := range strings.Split(strings.TrimSpace(said), "\n") {
		var record struct {
			Level    string
			Problems []string
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if record.Level == "error" {
			problems = append(problems, record.Problems...)
		}
	}
	return problems
}

// TestUnsuitableKernel starts the agent on a kernel that lacks what is required:
// it stays, says what in its log and its status, and leaves nothing behind.
func TestUnsuitableKernel(t *testing.T) {
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	report, _, status := preflight(t)
	if status == 0 {
		t.Skipf("kernel %s has everything that is required", report.Kernel)
	}
	state, said := alone(t, nil, "/sys/fs/bpf/millrace-alone")
	t.Log(said)
	problems := strings.Join(state.GetProblems(), "\n")
	if logged := strings.Join(unsuitable(t, said), "\n"); logged != problems {
		t.Errorf("logged %q, told %q", logged, problems)
	}
	if !strings.Contains(problems, report.Kernel) || state.GetDataplane().GetKernel() != report.Kernel {
		t.Errorf("kernel %q: %q", state.GetDataplane().GetKernel(), problems)
	}
	for _, f := range report.Features {
		tried := !strings.Contains(f.Error, "not tried")
		if f.Required && !f.Available && tried && !strings.Contains(problems, f.Name) {
			t.Errorf("%q does not name %s", problems, f.Name)
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
	state, said := alone(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, filepath.Join(dir, "millrace"))
	problems := state.GetProblems()
	if logged := unsuitable(t, said); len(problems) != 3 || !slices.Equal(logged, problems) ||
		!strings.Contains(problems[0], "CAP_BPF") || !strings.Contains(problems[1], "CAP_NET_ADMIN") || !strings.Contains(problems[2], "CAP_PERFMON") {
		t.Errorf("logged %q, told %q", logged, problems)
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
