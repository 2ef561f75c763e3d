// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// ctl runs millracectl and returns its output.
func (d *demo) ctl(args ...string) (string, error) {
	args = append([]string{
		"--agent", "unix://" + d.Nodes[0].Socket,
		"--calculator", "unix://" + d.CalculatorSocket(),
	}, args...)
	output, err := exec.Command(d.Binaries.Ctl, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(string(output)))
	}
	return string(output), nil
}

// commandLine shows what millracectl says.
func (d *demo) commandLine() {
	d.step("millracectl tells what is going on")
	pods := d.Pods()
	service := d.fromOutside(d.service("shown", pods[2].Endpoint()))
	if !d.serve(service) {
		return
	}
	prober, err := d.Probe(d.Client)
	if err != nil {
		d.problem("start prober", err)
		return
	}
	opened, err := prober.Open(probe.Dial{Network: probe.TCP, Target: netip.AddrPortFrom(d.Nodes[0].IPv4, service.Ports[0].NodePort)})
	if err != nil || opened.Failure != probe.None {
		d.problem("open a connection", fmt.Errorf("%v %s", err, opened.Detail))
		return
	}
	defer prober.Close(opened.Session) //nolint:errcheck // ends with the prober
	address := netip.AddrPortFrom(pods[2].IPv4, echoPort).String()
	for _, show := range []struct {
		args []string
		want []string
	}{
		{[]string{"status"}, []string{d.Nodes[0].Name}},
		{[]string{"nodes"}, []string{d.Nodes[0].Name, d.Nodes[1].Name, d.Nodes[2].Name}},
		{[]string{"services", "get", service.Name}, []string{service.ClusterIPs[0].String(), address}},
		{[]string{"conntrack", "--address", d.Client.IPv4.String()}, []string{opened.Local.String(), address}},
		{[]string{"maps"}, []string{"frontends_v4", "established_v6"}},
	} {
		what := "millracectl " + strings.Join(show.args, " ")
		output, err := d.ctl(show.args...)
		if err != nil {
			d.problem(what, err)
			continue
		}
		missing := []string{}
		for _, text := range show.want {
			if !strings.Contains(output, text) {
				missing = append(missing, text)
			}
		}
		seen := "all of it"
		if len(missing) > 0 {
			seen = "not " + strings.Join(missing, ", ")
		}
		d.check(what, "tells of "+show.want[len(show.want)-1], seen, len(missing) == 0)
		lines := strings.Split(strings.TrimRight(output, "\n"), "\n")
		for _, line := range lines[:min(len(lines), 8)] {
			fmt.Fprintln(d.out, d.paint("36", "           "+line))
		}
		if len(lines) > 8 {
			d.note("       ... %d more lines", len(lines)-8)
		}
	}
}

// examples are services for those who look around.
func (d *demo) examples() []testbed.Service {
	pods := d.Pods()
	return []testbed.Service{d.fromOutside(d.service("example", pods[1].Endpoint(), pods[2].Endpoint(), pods[4].Endpoint()))}
}

// applyExamples programs the examples that the hints speak of.
func (d *demo) applyExamples() error {
	d.step("The cluster stays up with a service to try")
	if !d.serve(d.examples()...) {
		return ErrDiffers
	}
	return nil
}

// printHints tells what to try on a cluster that stays up.
func (d *demo) printHints() {
	service := testbed.Service{ClusterIPs: []netip.Addr{testbed.ServiceIP(4, d.services), testbed.ServiceIP(6, d.services)}}
	pod, node := d.Pods()[0], d.Nodes[0]
	agent, calculator := "unix://"+node.Socket, "unix://"+d.CalculatorSocket()
	// `make demo KEEP=1` puts it beside millracectl.
	grpcurl := filepath.Join(filepath.Dir(d.Binaries.Ctl), "grpcurl")
	if _, err := os.Stat(grpcurl); err != nil {
		grpcurl = "grpcurl"
	}
	fmt.Fprintf(d.out, `
%s

From a pod (by its sockets: the shell joins the pod's cgroup and namespace):
  %s curl -s http://%s/
  %s curl -s http://[%s]/
From outside:
  nsenter --net=%s curl -s http://%s:%d/
What the node's agent and the calculator know:
  export MILLRACE_AGENT=%s MILLRACE_CALCULATOR=%s
  %s status
  %s services get example
  %s conntrack
  %s -plaintext %s list
  %s -plaintext -d '{"name": "frontends_v4"}' %s millrace.agent.v1.AgentService/DumpMap
Change it (the calculator watches the directory):
  ls %s
Logs:
  ls %s
Take it away:
  make demo-down
`,
		d.paint("1", "What to try"),
		pod.NSEnter(), service.ClusterIPs[0],
		pod.NSEnter(), service.ClusterIPs[1],
		d.Client.NetNS, node.IPv4, 30000+d.services,
		agent, calculator,
		d.Binaries.Ctl, d.Binaries.Ctl, d.Binaries.Ctl,
		grpcurl, agent, grpcurl, agent,
		d.ManifestDir(), d.LogDir())
}
