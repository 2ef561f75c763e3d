// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// changes moves a backend and deletes a service.
func (d *demo) changes() {
	d.step("A backend goes and traffic moves; a service goes and nothing answers")
	pods := d.Pods()
	service := d.service("moving", pods[1].Endpoint())
	if !d.serve(service) {
		return
	}
	calls := func(server *testbed.Pod) {
		everyWay(func(network string, family int, label string) {
			d.call(fmt.Sprintf("%s -> moving, %s", pods[0].Name, label), &pods[0].Host,
				probe.Dial{Network: network, Target: at(service, family)}, server.Name, pods[0].IP(family).String())
		})
	}
	calls(pods[1])
	d.note("%s is replaced by %s.", pods[1].Name, pods[4].Name)
	service.Endpoints = []testbed.Endpoint{pods[4].Endpoint()}
	if !d.serve(service) {
		return
	}
	calls(pods[4])
	ctx, cancel := context.WithTimeout(d.ctx, 15*time.Second)
	defer cancel()
	if err := d.Unserve(ctx, service); err != nil {
		d.problem("delete the service", err)
		return
	}
	d.check("delete moving", "gone from all nodes", "gone from all nodes", true)
	everyWay(func(network string, family int, label string) {
		what := fmt.Sprintf("%s -> moving, %s", pods[0].Name, label)
		answer, err := d.Ask(&pods[0].Host, probe.Dial{Network: network, Target: at(service, family), Timeout: 300 * time.Millisecond})
		if err != nil {
			d.problem(what, err)
			return
		}
		seen := "no answer (" + string(answer.Failure) + ")"
		if answer.Failure == probe.None {
			seen = "answered by " + answer.Server
		}
		d.check(what, "no answer", seen, answer.Failure != probe.None)
	})
}

// openConnection is a connection that stays open while things happen.
type openConnection struct {
	what    string
	prober  *testbed.Prober
	session int
}

// agentRestart kills an agent under open connections.
func (d *demo) agentRestart() {
	d.step("An agent is killed under open connections")
	pods, agent := d.Pods(), d.Agents[0]
	service := d.fromOutside(d.service("lasting", pods[2].Endpoint()))
	if !d.serve(service) {
		return
	}
	var open []openConnection
	for _, family := range families {
		for _, c := range []struct {
			what   string
			host   *testbed.Host
			target netip.AddrPort
		}{
			{pods[0].Name, &pods[0].Host, at(service, family)},
			{"client", d.Client, netip.AddrPortFrom(agent.Node.IP(family), service.Ports[0].NodePort)},
		} {
			prober, err := d.Probe(c.host)
			if err != nil {
				d.problem("start prober", err)
				return
			}
			opened, err := prober.Open(probe.Dial{Network: probe.TCP, Target: c.target})
			if err != nil {
				d.problem("open a connection", err)
				return
			}
			defer prober.Close(opened.Session) //nolint:errcheck // ends with the prober
			open = append(open, openConnection{fmt.Sprintf("%s's open connection, IPv%d", c.what, family), prober, opened.Session})
		}
	}
	goOn := func(when string) {
		for _, c := range open {
			answer, err := c.prober.Exchange(probe.Exchange{Session: c.session})
			if err != nil {
				d.problem(c.what, err)
				continue
			}
			seen := "answered by " + answer.Server
			if answer.Failure != probe.None {
				seen = string(answer.Failure) + ": " + answer.Detail
			}
			d.equal(c.what+", "+when, "answered by "+pods[2].Name, seen)
		}
	}
	goOn("before")
	if err := agent.Process.Kill(); err != nil {
		d.problem("kill the agent", err)
		return
	}
	d.note("The agent of %s is dead (kill -9).", agent.Node.Name)
	goOn("meanwhile")
	d.call(pods[0].Name+" -> lasting, a new connection", &pods[0].Host,
		probe.Dial{Network: probe.TCP, Target: at(service, 4)}, pods[2].Name, pods[0].IPv4.String())
	began := time.Now()
	if err := agent.Start(); err != nil {
		d.problem("start the agent again", err)
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, 20*time.Second)
	defer cancel()
	if err := agent.WaitInSync(ctx); err != nil {
		d.problem("start the agent again", err)
		return
	}
	d.check("start the agent again", "in sync", fmt.Sprintf("in sync after %v", round(time.Since(began))), true)
	status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
	if err != nil {
		d.problem("ask the agent for its status", err)
		return
	}
	adopted, attachments := 0, status.GetDataplane().GetAttachments()
	for _, attachment := range attachments {
		if attachment.GetAdopted() {
			adopted++
		}
	}
	d.check("programs that it found attached and kept", "all", fmt.Sprintf("%d of %d", adopted, len(attachments)),
		adopted == len(attachments) && adopted > 0)
	goOn("after")
}

// badInput writes a manifest that does not parse and a service that cannot be.
func (d *demo) badInput() {
	d.step("Bad manifests are named, everything else keeps working")
	pods := d.Pods()
	good := d.service("good", pods[1].Endpoint())
	bad := d.service("impossible", pods[1].Endpoint())
	object := bad.Object()
	object.Spec.Ports[0].Port = 70000
	if !d.serve(good) {
		return
	}
	if err := d.ApplyText("garbled", []byte("apiVersion: v1\nkind: [Service\n")); err != nil {
		d.problem("write a manifest", err)
		return
	}
	if err := d.Apply("impossible", object); err != nil {
		d.problem("write a manifest", err)
		return
	}
	for _, want := range []struct{ what, name, field string }{
		{"a file that does not parse", "garbled.yaml", ""},
		{"a service with port 70000", "impossible", "spec.ports[0].port"},
	} {
		expected := strings.TrimSpace(want.name + " " + want.field)
		var message string
		err := testbed.Within(10*time.Second, func() error {
			status, err := d.Calculator.GetStatus(d.ctx, &calculatorv1.GetStatusRequest{})
			if err != nil {
				return err
			}
			for _, problem := range status.GetProblems() {
				if strings.Contains(problem.GetName(), want.name) && problem.GetField() == want.field {
					message = problem.GetMessage()
					return nil
				}
			}
			return fmt.Errorf("problems are %v", status.GetProblems())
		})
		if err != nil {
			d.problem(want.what, err)
			continue
		}
		d.check(want.what, expected, fmt.Sprintf("%s: %s", expected, message), true)
	}
	another := d.service("another", pods[2].Endpoint())
	if d.serve(another) {
		for _, service := range []testbed.Service{good, another} {
			d.call(pods[0].Name+" -> "+service.Name, &pods[0].Host,
				probe.Dial{Network: probe.TCP, Target: at(service, 4)}, service.Endpoints[0].PodName, pods[0].IPv4.String())
		}
	}
	for _, name := range []string{"garbled", "impossible"} {
		if err := d.Delete(name); err != nil {
			d.problem("remove a manifest", err)
		}
	}
}

// netfilter shows that the CNI plugin's own translation goes on.
func (d *demo) netfilter() {
	d.step("The node's own netfilter: CNI masquerading and host ports work beside services")
	pods, node := d.Pods(), d.Nodes[0]
	for _, protocol := range protocols {
		if err := node.HostPort(protocol.network, 9080, pods[1], echoPort); err != nil {
			d.problem("set up a host port", err)
			return
		}
	}
	everyWay(func(network string, family int, label string) {
		d.call(pods[0].Name+" -> client, masqueraded, "+label, &pods[0].Host,
			probe.Dial{Network: network, Target: netip.AddrPortFrom(d.Client.IP(family), echoPort)},
			d.Client.Name, node.IP(family).String())
		d.call("client -> host port of "+node.Name+", "+label, d.Client,
			probe.Dial{Network: network, Target: netip.AddrPortFrom(node.IP(family), 9080)},
			pods[1].Name, d.Client.IP(family).String())
	})
}
