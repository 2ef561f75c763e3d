// SPDX-License-Identifier: Apache-2.0

// Package demo shows Millrace at work: it builds a cluster of network
// namespaces, runs the real calculator and agents on it, and tells of each
// step what was expected and what was seen.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// clusterName is fixed, so that Down finds what Run left up.
const clusterName = "demo"

// echoPort is where the echo servers in pods and on nodes listen.
const echoPort = 8080

// ErrDiffers says that something was not as expected.
var ErrDiffers = errors.New("not everything was as expected")

// demo is one run.
type demo struct {
	*report
	*testbed.Stack
	ctx context.Context
	// frontends numbers services, so that they get addresses of their own.
	services int
}

// Run runs the demo and prints to out. With keep the cluster stays up.
func Run(ctx context.Context, out *os.File, keep bool) (err error) {
	r := newReport(out)
	fmt.Fprintln(out, r.paint("1", "Millrace: Kubernetes Services by eBPF, without kube-proxy"))
	cluster, err := testbed.Start(testbed.Options{Name: clusterName, Nodes: 3, PodsPerNode: 2, Masquerade: true})
	if errors.Is(err, testbed.ErrKept) {
		return fmt.Errorf("the demo's cluster is still up; `make demo-down` removes it (%w)", err)
	}
	if err != nil {
		return err
	}
	d := &demo{report: r, ctx: ctx, Stack: &testbed.Stack{Cluster: cluster}}
	kept := false
	defer func() {
		if !kept {
			err = errors.Join(err, d.remove())
			r.summary()
		}
		if err == nil && r.failed > 0 {
			err = ErrDiffers
		}
	}()
	d.describe()
	if err := d.start(); err != nil {
		return err
	}
	for _, step := range []func(){
		d.clusterIPs, d.balancing, d.outside, d.specialPlaces, d.refusal, d.changes,
		d.agentRestart, d.badInput, d.netfilter, d.commandLine,
	} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("interrupted: %w", err)
		}
		step()
	}
	if keep {
		if err := d.applyExamples(); err != nil {
			return err
		}
		r.summary()
		kept = true
		d.printHints()
		return d.Keep()
	}
	return nil
}

// Down removes a cluster that Run left up.
func Down(out io.Writer) error {
	var traces *testbed.Traces
	var unknown error
	if cluster, err := testbed.Load(clusterName); err == nil {
		traces, unknown = cluster.Traces()
	}
	// Also when it is not known what to look for afterwards: a cluster that is
	// damaged has to go too.
	was, err := testbed.Remove(clusterName)
	if err := errors.Join(err, unknown); err != nil {
		return err
	}
	if !was {
		fmt.Fprintln(out, "There is no demo cluster.")
		return nil
	}
	if err := gone(traces); err != nil {
		return err
	}
	fmt.Fprintln(out, "The demo cluster is gone: no namespace, process, cgroup, pin or link is left.")
	return nil
}

// gone waits until nothing of the traces is present. (The kernel frees
// programs and maps a moment after their last user.)
func gone(traces *testbed.Traces) error {
	if traces == nil {
		return nil
	}
	return testbed.Within(20*time.Second, func() error {
		if found := traces.Present(); len(found) > 0 {
			return fmt.Errorf("left behind: %v", found)
		}
		return nil
	})
}

// remove removes the cluster as the last step of the demo.
func (d *demo) remove() error {
	d.step("Everything is taken away")
	traces, err := d.Traces()
	if err != nil {
		return errors.Join(err, d.Close())
	}
	before := len(traces.Present())
	if err := d.Close(); err != nil {
		d.problem("remove the cluster", err)
		return nil
	}
	what := fmt.Sprintf("namespaces, processes, mounts, BPF objects (%d)", before)
	if err := gone(traces); err != nil {
		d.check(what, "none left", err.Error(), false)
		return nil
	}
	d.equal(what, "none left", "none left")
	return nil
}

// describe prints what the cluster is.
func (d *demo) describe() {
	d.note("%d nodes with %d pods, and an external client, each a network namespace:", len(d.Nodes), len(d.Pods()))
	for _, node := range d.Nodes {
		d.note("  %s  %-12s %-16s", node.Name, node.IPv4, node.IPv6)
		for _, pod := range node.Pods {
			d.note("    %s  %-12s %-16s", pod.Name, pod.IPv4, pod.IPv6)
		}
	}
	d.note("  client  %-12s %-16s", d.Client.IPv4, d.Client.IPv6)
}

// start builds the programs and starts them.
func (d *demo) start() error {
	d.step("A calculator reads manifests, an agent on each node programs the kernel")
	dir := filepath.Join(d.Dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	binaries, err := testbed.BuildBinaries(dir)
	if err != nil {
		return err
	}
	d.Binaries = binaries
	began := time.Now()
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	if err := d.Stack.Up(ctx); err != nil {
		return err
	}
	d.check("calculator and three agents in sync", "in sync", fmt.Sprintf("in sync after %v", round(time.Since(began))), true)
	for _, node := range d.Nodes {
		hosts := []*testbed.Host{&node.Host}
		for _, pod := range node.Pods {
			hosts = append(hosts, &pod.Host)
		}
		if err := d.ServeEcho(echoPort, hosts...); err != nil {
			return err
		}
	}
	return d.ServeEcho(echoPort, d.Client)
}

// serve programs services; what could not be done is reported.
func (d *demo) serve(services ...testbed.Service) bool {
	ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
	defer cancel()
	began := time.Now()
	if err := d.Serve(ctx, services...); err != nil {
		d.problem("program services on all nodes", err)
		return false
	}
	names := services[0].Name
	if len(services) > 1 {
		names = fmt.Sprintf("%d services", len(services))
	}
	d.check("apply "+names, "in the kernel of all nodes", fmt.Sprintf("after %v", round(time.Since(began))), true)
	return true
}

func round(d time.Duration) time.Duration {
	if d > 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}

// call makes one exchange and reports who answered and whom the backend saw.
func (d *demo) call(what string, from *testbed.Host, dial probe.Dial, server string, source string) {
	expected := fmt.Sprintf("%s sees %s", server, source)
	answer, err := d.Ask(from, dial)
	if err != nil {
		d.problem(what, err)
		return
	}
	seen := fmt.Sprintf("%s sees %s", answer.Server, answer.Client.Addr())
	ok := seen == expected && answer.From == dial.Target
	switch {
	case answer.Failure != probe.None:
		seen = fmt.Sprintf("%s after %v", answer.Failure, round(answer.Took))
	case answer.From != dial.Target:
		seen += fmt.Sprintf(", but the answer comes from %s", answer.From)
	default:
		seen += fmt.Sprintf(" (%v)", round(answer.Took))
	}
	d.check(what, expected, seen, ok)
}
