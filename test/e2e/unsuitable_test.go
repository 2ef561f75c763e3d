// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestUnsuitableNode starts an agent on a node without a BPF filesystem, then with
// one that is read-only: it stays, is alive and not ready, and says what is
// wrong, and goes on by itself when that is mended.
func TestUnsuitableNode(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 1, PodsPerNode: 1})
	agent := stack.Agents[0]
	ctx := harness.Limit(t, 120*time.Second)
	service := newService("kept", 1, stack.Pods()[0].Endpoint())
	serve(t, stack, service)
	if err := agent.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	pins := t.TempDir()
	agent.SetArgs("--bpf-dir", filepath.Join(pins, "millrace"))
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	pid := agent.Process.PID()
	awaitUnsuitable(ctx, t, stack, agent, "is not on a BPF filesystem")
	health(t, agent, http.StatusOK, http.StatusServiceUnavailable, "is not on a BPF filesystem")
	// Whoever asks for more hears why there is no more.
	list, err := agent.ListServices(ctx, &agentv1.ListServicesRequest{})
	if err == nil {
		_, err = list.Recv()
	}
	if err == nil || !strings.Contains(err.Error(), "is not on a BPF filesystem") {
		t.Errorf("services: %v", err)
	}

	mount(t, "bpf", pins, "bpf", unix.MS_RDONLY, "mode=0700")
	awaitUnsuitable(ctx, t, stack, agent, "is mounted read-only")

	if err := unix.Mount("", pins, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if err := agent.WaitInSync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := agent.WaitServices(ctx, service); err != nil {
		t.Error(err)
	}
	health(t, agent, http.StatusOK, http.StatusOK, "")
	if agent.Process.PID() != pid {
		t.Error("the agent was started anew")
	}
	if err := agent.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := agent.Node.Run(binaries.Agent, "cleanup", "--bpf-dir", filepath.Join(pins, "millrace"), "--state-dir", agent.Node.StateDir); err != nil {
		t.Errorf("cleanup: %s: %v", out, err)
	}
}

// TestWithoutCgroup2 starts an agent whose cgroup root is of no cgroup v2
// hierarchy: it programs packets, is not ready, says what is wrong, and attaches
// the programs of sockets when that is mended.
func TestWithoutCgroup2(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 1, PodsPerNode: 1})
	agent := stack.Agents[0]
	ctx := harness.Limit(t, 120*time.Second)
	if err := agent.Process.Stop(); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	agent.SetArgs("--cgroup-root", root)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	const problem = "is not a cgroup v2 hierarchy"
	err := testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if p := status.GetProblems(); len(p) != 1 || !strings.Contains(p[0], root+" "+problem) {
			return fmt.Errorf("problems %q", p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	health(t, agent, http.StatusOK, http.StatusServiceUnavailable, problem)
	mount(t, agent.Node.NodeCgroup, root, "", unix.MS_BIND, "")
	err = testbed.Eventually(ctx, func() error {
		status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err == nil && len(status.GetProblems()) > 0 {
			err = fmt.Errorf("problems %q", status.GetProblems())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	health(t, agent, http.StatusOK, http.StatusOK, "")
}

// mount mounts until the test ends.
func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// health asks an agent's probes.
func health(t *testing.T, agent *testbed.Agent, healthz, readyz int, why string) {
	t.Helper()
	for path, want := range map[string]int{"/healthz": healthz, "/readyz": readyz} {
		code, body, err := get(agent, path)
		if err != nil || code != want || want != http.StatusOK && !strings.Contains(body, why) {
			t.Errorf("%s: %d %q, %v; want %d %q", path, code, body, err, want, why)
		}
	}
}

// get asks an agent by HTTP, from its node.
func get(agent *testbed.Agent, path string) (code int, body string, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: agent.Node.DialContext, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", testbed.MetricsPort, path))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}
