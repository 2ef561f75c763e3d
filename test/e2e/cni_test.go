// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// reach asks a service from a pod, on packets alone.
func (r *runtime) reach(pod *testbed.Pod, service testbed.Service) {
	r.Helper()
	p := prober(r.T, r.stack, &pod.Host, true)
	for _, family := range families {
		for _, network := range networks {
			answer := ask(r.T, p, probe.Dial{Network: network, Target: clusterIP(service, family)})
			if answer.Failure != probe.None {
				r.Fatalf("%s over IPv%d from %s to the service, right after ADD: %+v", network, family, pod.Name, answer)
			}
		}
	}
}

// TestCNI gives a pod an interface by a real plugin and the chained one: when
// that returns, the pod's packets are caught; when the interface is taken away,
// nothing of the pod is left.
func TestCNI(t *testing.T) {
	for _, plugin := range []string{"ptp", "bridge"} {
		t.Run(plugin, func(t *testing.T) {
			r := startRuntime(t, plugin)
			service := newService("shop", 1, r.stack.Nodes[0].Pods[0].Endpoint())
			ctx := harness.Limit(t, 20*time.Second)
			r.serve(service)
			r.network()
			before := contents(ctx, t, r.agent)

			pod := r.sandbox("fresh")
			if err := r.add(pod); err != nil {
				t.Fatal(err)
			}
			e := r.known(pod, "cni")
			if e.GetUid() != "uid-fresh" || e.GetDeviceBy() != "cni" || e.GetNetnsCookie() == 0 ||
				!slices.Equal(e.GetAddresses(), []string{pod.IPv4.String(), pod.IPv6.String()}) {
				t.Fatalf("endpoint %v", e)
			}
			r.reach(pod, service)
			if len(r.flows(pod.IPv4)) == 0 || len(r.flows(pod.IPv6)) == 0 {
				t.Fatal("the pod's packets were not tracked")
			}
			if err := r.check(pod); err != nil {
				t.Fatalf("CHECK: %v", err)
			}
			// A calculator tells of the same pod: one endpoint.
			r.node.Pods = append(r.node.Pods, pod)
			if err := r.stack.ApplyNodes(); err != nil {
				t.Fatal(err)
			}
			err := testbed.Eventually(harness.Limit(t, 20*time.Second), func() error {
				if e := r.endpoints()["fresh"]; !slices.Equal(e.GetSources(), []string{"calculator", "cni"}) {
					return fmt.Errorf("endpoint %v", e)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			r.known(pod, "calculator", "cni")

			// The pod goes; calculators hear of it later.
			for range 2 {
				if err := r.del(pod); err != nil {
					t.Fatal(err)
				}
				if e := r.endpoints()["fresh"]; e != nil {
					t.Fatalf("after DEL: endpoint %v", e)
				}
				if flows := append(r.flows(pod.IPv4), r.flows(pod.IPv6)...); len(flows) > 0 {
					t.Fatalf("after DEL: flows %v", flows)
				}
				if err := r.holds(before); err != nil {
					t.Fatalf("after DEL %v", err)
				}
			}
			if err := r.stack.RemoveSandbox(pod); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCNIAlone adds and deletes pods while no calculator answers, with an agent
// that has never been in sync.
func TestCNIAlone(t *testing.T) {
	r := startRuntime(t, "ptp")
	service := newService("shop", 1, r.stack.Nodes[0].Pods[0].Endpoint())
	r.serve(service)
	r.killCalculator()
	before := contents(harness.Limit(t, 20*time.Second), t, r.agent)
	first := r.sandbox("first")
	if err := r.add(first); err != nil {
		t.Fatal(err)
	}
	r.reach(first, service)
	r.restart()
	r.known(first, "cni") // by what was kept
	r.reach(first, service)
	device := r.endpoints()["first"].GetDevice()
	if len(r.flows(first.IPv4)) == 0 {
		t.Fatal("the pod's packets were not tracked")
	}
	// The device is still there: its programs must go all the same.
	if err := r.delLast(first); err != nil {
		t.Fatal(err)
	}
	if e := r.endpoints()["first"]; e != nil || len(r.flows(first.IPv4)) > 0 {
		t.Fatalf("after DEL: %v, flows %v", e, r.flows(first.IPv4))
	}
	if err := r.holds(before); err != nil {
		t.Fatalf("after DEL %v", err)
	}
	status, err := r.agent.GetStatus(harness.Limit(t, 20*time.Second), &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, attachment := range status.GetDataplane().GetAttachments() {
		if attachment.GetTarget() == device {
			t.Fatalf("after DEL: %v", attachment)
		}
	}
	if err := r.del(first); err != nil {
		t.Fatalf("DEL once more: %v", err)
	}
}

// TestCNIAgentAway adds a pod while the agent is away for a moment, and for good,
// and deletes one.
func TestCNIAgentAway(t *testing.T) {
	r := startRuntime(t, "ptp", "--cni-add-timeout", "2s")
	r.network()
	r.kill()
	late := r.sandbox("late")
	started := time.Now()
	err := r.add(late)
	var failure *types.Error
	if !errors.As(err, &failure) || failure.Code != types.ErrTryAgainLater || !strings.Contains(failure.Msg, r.node.Socket) {
		t.Fatalf("ADD without an agent: %v, want an error with code %d that names %s", err, types.ErrTryAgainLater, r.node.Socket)
	}
	if took := time.Since(started); took < 2*time.Second {
		t.Fatalf("ADD gave up after %v, before its timeout", took)
	}
	if err := r.del(late); err != nil {
		t.Fatalf("DEL without an agent: %v", err)
	}
	waiting := filepath.Join(r.node.Socket+".deleted", "*.json")
	if left, _ := filepath.Glob(waiting); len(left) != 1 {
		t.Fatalf("%v waits for the agent, want one deletion", left)
	}
	if err := r.agent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := r.add(late); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(waiting); len(left) != 0 {
		t.Fatalf("%v still waits for the agent, which has added another pod", left)
	}
	r.known(late, "cni")

	// A pod goes while the agent is away, and another comes while it starts.
	r.kill()
	if err := r.del(late); err != nil {
		t.Fatal(err)
	}
	next := r.sandbox("next")
	done := make(chan error, 1)
	go func() { done <- r.add(next) }()
	if err := r.agent.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("ADD while the agent started: %v", err)
	}
	r.known(next, "cni")
	if e := r.endpoints()["late"]; e != nil {
		t.Fatalf("deleted while the agent was away: %v", e)
	}
}

// TestCNIInstall follows the plugin onto the node and off it again.
func TestCNIInstall(t *testing.T) {
	r := startRuntime(t, "ptp")
	r.network()
	main := filepath.Join(r.confDir, "10-main.conflist")
	original := strings.Replace(read(t, main), "1.0.0", "0.4.0", 1)
	original = original[:strings.LastIndex(original, "{\"type\":\"millrace-cni\"")]
	original = strings.TrimRight(original, " \n,") + "\n  ]\n}"
	// The main CNI writes its file anew, and is chained again.
	r.write("10-main.conflist", original)
	if list := r.network(); list.CNIVersion != "0.4.0" {
		t.Fatalf("version %s", list.CNIVersion)
	}
	// Another comes before it.
	r.write("05-first.conf", `{"cniVersion": "0.4.0", "name": "single", "type": "ptp", "ipam": {"type": "host-local", "subnet": "10.9.0.0/24"}}`)
	err := testbed.Eventually(harness.Limit(t, 20*time.Second), func() error {
		if list := r.network(); list.Name != "single" || len(list.Plugins) != 2 {
			return fmt.Errorf("network %s with %d plugins", list.Name, len(list.Plugins))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.binDir, "millrace-cni")); err != nil {
		t.Fatal(err)
	}
	err = testbed.Eventually(harness.Limit(t, 20*time.Second), func() error {
		_, err := os.Stat(filepath.Join(r.binDir, "millrace-cni"))
		return err
	})
	if err != nil {
		t.Fatalf("a removed plugin does not come back: %v", err)
	}
	// It stays when the agent stops, and goes by cleanup.
	r.kill()
	r.network()
	out, err := r.node.Run(append(confined(t, capabilities...), binaries.Agent, "cleanup", "--bpf-dir", r.node.BPFDir,
		"--state-dir", r.node.StateDir, "--cni-bin-dir", r.binDir, "--cni-conf-dir", r.confDir)...)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, main); got != original {
		t.Fatalf("after cleanup the configuration is\n%s\nand was\n%s", got, original)
	}
	left, _ := filepath.Glob(filepath.Join(r.confDir, "*"))
	if len(left) != 2 || filepath.Base(left[0]) != "05-first.conf" || !strings.Contains(string(out), "removed the CNI plugin") {
		t.Fatalf("after cleanup, which printed %q: %v", out, left)
	}
	if left, _ := os.ReadDir(r.binDir); len(left) > 0 {
		t.Fatalf("after cleanup: %v", left)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCNIChurn adds and deletes pods many times: nothing is left, and the times
// that adding took are told.
func TestCNIChurn(t *testing.T) {
	rounds := 15
	if os.Getenv("MILLRACE_SOAK") != "" {
		rounds = 500
	}
	r := startRuntime(t, "ptp")
	r.network()
	ctx := harness.Limit(t, 10*time.Minute)
	before := contents(ctx, t, r.agent)
	status, err := r.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	attachments := len(status.GetDataplane().GetAttachments())
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.agent.Process.PID()))
	if err != nil {
		t.Fatal(err)
	}
	open := len(files)
	took := map[string][]time.Duration{}
	for i := range rounds {
		// In turns, so that both see the same machine.
		for name, add := range map[string]func(*testbed.Pod) error{"without": r.addBefore, "with": r.add} {
			pod := r.sandbox(fmt.Sprintf("churn-%d-%s", i, name))
			started := time.Now()
			if err := add(pod); err != nil {
				t.Fatal(err)
			}
			took[name] = append(took[name], time.Since(started))
			if err := r.del(pod); err != nil {
				t.Fatal(err)
			}
			if err := r.stack.RemoveSandbox(pod); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, times := range took {
		slices.Sort(times)
		t.Logf("ADD by ptp and host-local, %s millrace-cni: median %v, 99%% %v", name, times[len(times)/2], times[len(times)*99/100])
	}
	if err := r.holds(before); err != nil {
		t.Fatal(err)
	}
	for name := range r.endpoints() {
		if strings.HasPrefix(name, "churn") {
			t.Errorf("endpoint %s is left", name)
		}
	}
	for _, pattern := range []string{filepath.Join(filepath.Dir(r.confDir), "run", "*", "*"), filepath.Join(r.node.Socket+".deleted", "*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	}
	if status, err = r.agent.GetStatus(ctx, &agentv1.GetStatusRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := len(status.GetDataplane().GetAttachments()); n != attachments {
		t.Errorf("%d attachments, and %d before", n, attachments)
	}
	if files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.agent.Process.PID())); len(files) > open+4 {
		t.Errorf("the agent has %d open files, and had %d before", len(files), open)
	}
	if len(status.GetErrors())+len(status.GetProblems()) > 0 {
		t.Errorf("errors %v, problems %v", status.GetErrors(), status.GetProblems())
	}
}

// TestCNIOlderPod finds a pod that is older than the plugin by the bridge port
// behind which its address is, also when it is silent, and takes it down.
func TestCNIOlderPod(t *testing.T) {
	r := startRuntime(t, "bridge")
	service := newService("shop", 1, r.stack.Nodes[0].Pods[0].Endpoint())
	ctx := harness.Limit(t, 60*time.Second)
	r.serve(service)
	before := contents(ctx, t, r.agent)
	pod := r.sandbox("older")
	if err := r.addBefore(pod); err != nil {
		t.Fatal(err)
	}
	if e := r.endpoints()["older"]; e != nil {
		t.Fatalf("nobody told of the pod, but it is known: %v", e)
	}
	r.node.Pods = append(r.node.Pods, pod)
	if err := r.stack.ApplyNodes(); err != nil {
		t.Fatal(err)
	}
	found := func(what string) {
		t.Helper()
		err := testbed.Eventually(ctx, func() error {
			e := r.endpoints()["older"]
			if e.GetProblem() != "" || e.GetDeviceBy() != "bridge port" || !slices.Equal(e.GetSources(), []string{"calculator"}) {
				return fmt.Errorf("endpoint %v", e)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	found("a pod that has said nothing")
	r.reach(pod, service)
	// The bridge forgets it; an agent that starts then makes it speak.
	r.kill()
	if err := r.node.Do(func() error { return forget("cni0") }); err != nil {
		t.Fatal(err)
	}
	if err := r.agent.Start(); err != nil {
		t.Fatal(err)
	}
	found("a pod that the bridge has forgotten")
	r.reach(pod, service)
	if err := r.del(pod); err != nil {
		t.Fatal(err)
	}
	if flows := append(r.flows(pod.IPv4), r.flows(pod.IPv6)...); len(flows) > 0 || r.endpoints()["older"] != nil {
		t.Fatalf("after DEL: flows %v, endpoint %v", flows, r.endpoints()["older"])
	}
	if err := r.holds(before); err != nil {
		t.Fatalf("after DEL %v", err)
	}
	if err := r.stack.RemoveSandbox(pod); err != nil {
		t.Fatal(err)
	}
}

// forget removes what a bridge has learned of who is behind which port.
func forget(bridge string) error {
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	entries, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return err
	}
	forgotten := 0
	for _, e := range entries {
		if e.MasterIndex == master.Attrs().Index && e.State&netlink.NUD_PERMANENT == 0 {
			e.Flags |= netlink.NTF_MASTER
			if err := netlink.NeighDel(&e); err != nil {
				return fmt.Errorf("delete forwarding entry %v: %w", e, err)
			}
			forgotten++
		}
	}
	if forgotten == 0 {
		return errors.New("the bridge had learned nothing")
	}
	return nil
}

// TestCNIKilled kills the agent again and again while pods come and go: every call
// succeeds all the same, and nothing is left.
func TestCNIKilled(t *testing.T) {
	r := startRuntime(t, "ptp")
	list := r.network()
	ctx := harness.Limit(t, 3*time.Minute)
	before := contents(ctx, t, r.agent)
	const rounds = 6
	done := make(chan error, 1)
	var stay *testbed.Pod
	pods := make([]*testbed.Pod, rounds)
	for i := range pods {
		pods[i] = r.sandbox(fmt.Sprintf("killed-%d", i))
	}
	go func() {
		done <- func() error {
			for _, pod := range pods {
				if err := r.addBy(list, pod); err != nil {
					return fmt.Errorf("ADD of %s: %w", pod.Name, err)
				}
				if stay == nil {
					stay = pod
					continue
				}
				if err := r.delBy(list, pod); err != nil {
					return fmt.Errorf("DEL of %s: %w", pod.Name, err)
				}
			}
			return nil
		}()
	}()
	kills, failure := 0, error(nil)
	for running := true; running; {
		select {
		case failure = <-done:
			running = false
		case <-time.After(time.Duration(50+40*(kills%7)) * time.Millisecond):
			r.kill()
			if err := r.agent.Start(); err != nil {
				t.Fatal(err)
			}
			kills++
		}
	}
	if failure != nil {
		t.Fatalf("after %d kills: %v", kills, failure)
	}
	t.Logf("the agent was killed %d times", kills)
	if kills == 0 {
		t.Fatal("the agent was not killed once")
	}
	r.known(stay, "cni")
	if err := r.check(stay); err != nil {
		t.Fatalf("CHECK: %v", err)
	}
	if err := r.del(stay); err != nil {
		t.Fatal(err)
	}
	for name := range r.endpoints() {
		if strings.HasPrefix(name, "killed") {
			t.Errorf("endpoint %s is left", name)
		}
	}
	if err := testbed.Eventually(ctx, func() error { return r.holds(before) }); err != nil {
		t.Fatal(err)
	}
}
