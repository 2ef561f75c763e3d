// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// pluginDir is where Debian puts the reference plugins.
const pluginDir = "/usr/lib/cni"

// runtime is a container runtime's view of a node: it calls the plugins of the
// node's CNI configuration, which the node's agent has chained its own into.
type runtime struct {
	*testing.T
	stack    *testbed.Stack
	node     *testbed.Node
	agent    *testbed.Agent
	binDir   string
	confDir  string
	cacheDir string
}

// mainCNI are configurations of the plugins that make a pod's interface.
var mainCNI = map[string]string{
	"ptp": `{"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": %s}`,
	"bridge": `{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "mtu": 1500, "ipam": %s}`,
}

// startRuntime starts a cluster of one node on which the main CNI is configured.
func startRuntime(t *testing.T, plugin string, args ...string) *runtime {
	t.Helper()
	if err := testbed.Supported(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(filepath.Join(pluginDir, plugin)); err != nil {
		t.Skipf("the reference plugin %s is not installed: %v", plugin, err)
	}
	dir := t.TempDir()
	r := &runtime{T: t, binDir: filepath.Join(dir, "bin"), confDir: filepath.Join(dir, "net.d"), cacheDir: filepath.Join(dir, "cache")}
	for _, each := range []string{r.binDir, r.confDir} {
		if err := os.Mkdir(each, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args = append([]string{"--cni-bin-dir", r.binDir, "--cni-conf-dir", r.confDir, "--state-fallback-dir", filepath.Join(dir, "run")}, args...)
	// As the manifests run it.
	r.stack = startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 1, AgentArgs: args, AgentUnder: confined(t, capabilities...)})
	r.node, r.agent = r.stack.Nodes[0], r.stack.Agents[0]
	// The other node's agent was to have the same directories.
	if err := r.stack.Agents[1].Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ipam := fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "ranges": [[{"subnet": %q, "rangeStart": %q}], [{"subnet": %q, "rangeStart": %q}]]}`, filepath.Join(dir, "ipam"),
		r.node.PodCIDRv4, number(r.node.PodCIDRv4, 100), r.node.PodCIDRv6, number(r.node.PodCIDRv6, 100))
	r.write("10-main.conflist", fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    %s
  ]
}`, fmt.Sprintf(mainCNI[plugin], ipam)))
	return r
}

// serve programs a service on the node; the other one has no agent.
func (r *runtime) serve(service testbed.Service) {
	r.Helper()
	ctx := harness.Limit(r.T, 20*time.Second)
	if err := errors.Join(r.stack.ApplyService(service), r.agent.WaitServices(ctx, service)); err != nil {
		r.Fatal(err)
	}
}

// holds is nil if the maps hold what they held before.
func (r *runtime) holds(before []string) error {
	r.Helper()
	after := contents(harness.Limit(r.T, 20*time.Second), r.T, r.agent)
	if !slices.Equal(before, after) {
		return fmt.Errorf("the maps hold\n%s\nand held before\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
	return nil
}

// number returns the n-th address of a prefix.
func number(prefix netip.Prefix, n int) string {
	raw := prefix.Addr().AsSlice()
	raw[len(raw)-1] += byte(n)
	addr, _ := netip.AddrFromSlice(raw)
	return addr.String()
}

// write writes a CNI configuration as a main CNI does.
func (r *runtime) write(name, text string) {
	r.Helper()
	draft := filepath.Join(r.confDir, ".draft")
	if err := errors.Join(os.WriteFile(draft, []byte(text), 0o644), os.Rename(draft, filepath.Join(r.confDir, name))); err != nil {
		r.Fatal(err)
	}
}

// network returns the node's configuration once the plugin is chained into it.
func (r *runtime) network() *libcni.NetworkConfigList {
	r.Helper()
	var list *libcni.NetworkConfigList
	err := testbed.Eventually(harness.Limit(r.T, 20*time.Second), func() error {
		files, err := libcni.ConfFiles(r.confDir, []string{".conf", ".conflist", ".json"})
		if err != nil {
			return err
		}
		slices.Sort(files)
		if len(files) == 0 || !strings.HasSuffix(files[0], ".conflist") {
			return fmt.Errorf("no list of plugins in %v", files)
		}
		if list, err = libcni.ConfListFromFile(files[0]); err != nil {
			return err
		}
		if last := list.Plugins[len(list.Plugins)-1]; last.Network.Type != "millrace-cni" {
			return fmt.Errorf("the last plugin is %s", last.Network.Type)
		}
		return nil
	})
	if err != nil {
		r.Fatalf("the plugin is not chained: %v", err)
	}
	return list
}

// call runs f with CNI in the node's network namespace.
func (r *runtime) call(pod *testbed.Pod, f func(context.Context, *libcni.CNIConfig, *libcni.RuntimeConf) error) error {
	cni := libcni.NewCNIConfigWithCacheDir([]string{r.binDir, pluginDir}, r.cacheDir, nil)
	conf := &libcni.RuntimeConf{ContainerID: "sandbox-" + pod.Name, NetNS: pod.NetNS, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", testbed.Namespace}, {"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", "sandbox-" + pod.Name}, {"K8S_POD_UID", "uid-" + pod.Name},
	}}
	return r.node.Do(func() error { return f(context.Background(), cni, conf) })
}

// sandbox makes a pod without an interface.
func (r *runtime) sandbox(name string) *testbed.Pod {
	r.Helper()
	pod, err := r.stack.AddSandbox(r.node, name)
	if err != nil {
		r.Fatal(err)
	}
	return pod
}

// add gives a pod its interface.
func (r *runtime) add(pod *testbed.Pod) error { return r.addBy(r.network(), pod) }

// addBefore gives a pod its interface as if the plugin were not installed yet.
func (r *runtime) addBefore(pod *testbed.Pod) error {
	list := *r.network()
	list.Plugins = list.Plugins[:len(list.Plugins)-1]
	return r.addBy(&list, pod)
}

func (r *runtime) addBy(list *libcni.NetworkConfigList, pod *testbed.Pod) error {
	return r.call(pod, func(ctx context.Context, cni *libcni.CNIConfig, conf *libcni.RuntimeConf) error {
		result, err := cni.AddNetworkList(ctx, list, conf)
		if err != nil {
			return err
		}
		now, err := types100.GetResult(result)
		if err != nil {
			return err
		}
		for _, ip := range now.IPs {
			if addr, _ := netip.AddrFromSlice(ip.Address.IP); addr.Unmap().Is4() {
				pod.IPv4 = addr.Unmap()
			} else {
				pod.IPv6 = addr
			}
		}
		return nil
	})
}

func (r *runtime) del(pod *testbed.Pod) error { return r.delBy(r.network(), pod) }

func (r *runtime) delBy(list *libcni.NetworkConfigList, pod *testbed.Pod) error {
	return r.call(pod, func(ctx context.Context, cni *libcni.CNIConfig, conf *libcni.RuntimeConf) error {
		return cni.DelNetworkList(ctx, list, conf)
	})
}

// delLast calls only the plugin's own DEL: what the others made is still there.
func (r *runtime) delLast(pod *testbed.Pod) error {
	list := *r.network()
	list.Plugins = list.Plugins[len(list.Plugins)-1:]
	return r.delBy(&list, pod)
}

func (r *runtime) check(pod *testbed.Pod) error {
	list := r.network()
	return r.call(pod, func(ctx context.Context, cni *libcni.CNIConfig, conf *libcni.RuntimeConf) error {
		return cni.CheckNetworkList(ctx, list, conf)
	})
}

// endpoints returns the node's endpoints by name.
func (r *runtime) endpoints() map[string]*agentv1.ListEndpointsResponse {
	r.Helper()
	stream, err := r.agent.ListEndpoints(harness.Limit(r.T, 20*time.Second), &agentv1.ListEndpointsRequest{})
	if err != nil {
		r.Fatal(err)
	}
	found := map[string]*agentv1.ListEndpointsResponse{}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			r.Fatal(err)
		}
		found[e.GetName()] = e
	}
}

// flows returns the tracked flows that touch an address.
func (r *runtime) flows(addr netip.Addr) []*agentv1.ListConntrackResponse {
	r.Helper()
	stream, err := r.agent.ListConntrack(harness.Limit(r.T, 20*time.Second), &agentv1.ListConntrackRequest{Address: addr.String()})
	if err != nil {
		r.Fatal(err)
	}
	var found []*agentv1.ListConntrackResponse
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			r.Fatal(err)
		}
		found = append(found, f)
	}
}

// known fails unless an endpoint is known from exactly these sources, and has
// programs.
func (r *runtime) known(pod *testbed.Pod, sources ...string) *agentv1.ListEndpointsResponse {
	r.Helper()
	e := r.endpoints()[pod.Name]
	if e == nil || e.GetProblem() != "" || e.GetDevice() == "" || !slices.Equal(e.GetSources(), sources) {
		r.Fatalf("endpoint %s: %v, want it from %v and with programs", pod.Name, e, sources)
	}
	return e
}

// killCalculator ends the calculator, and restarts the agent so that it knows only
// what it kept.
func (r *runtime) killCalculator() {
	r.Helper()
	if err := r.stack.Calculator.Process.Kill(); err != nil {
		r.Fatal(err)
	}
	r.restart()
}

func (r *runtime) kill() {
	r.Helper()
	if err := r.agent.Process.Kill(); err != nil {
		r.Fatal(err)
	}
}

func (r *runtime) restart() {
	r.Helper()
	r.kill()
	if err := r.agent.Start(); err != nil {
		r.Fatal(err)
	}
}
