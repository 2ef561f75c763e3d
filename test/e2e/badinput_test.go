// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/probe"
	"github.com/millrace-project/millrace/test/testbed"
)

// TestBadManifests writes objects that are wrong: each is named with the
// field that is to blame, everything else keeps working, and so does what the
// wrong file replaced.
func TestBadManifests(t *testing.T) {
	stack := startStack(t, testbed.Options{Nodes: 2, PodsPerNode: 2})
	pods := stack.Pods()
	good := newService("good", 1, pods[1].Endpoint())
	claimed := newService("claimed", 2, pods[1].Endpoint())
	serve(t, stack, good, claimed)

	badPort := newService("bad-port", 3, pods[1].Endpoint())
	object := badPort.Object()
	object.Spec.Ports[0].Port = 70000
	badFamily := newService("bad-family", 4, pods[1].Endpoint()).Object()
	badFamily.Spec.ClusterIPs = []string{"10.96.0.4", "10.96.1.4"}
	badFamily.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	thief := newService("thief", 5, pods[2].Endpoint())
	thief.ExternalIPs = claimed.ExternalIPs
	for i := range thief.Ports {
		thief.Ports[i].NodePort = 0
	}
	orphan := newService("orphan", 6, pods[2].Endpoint())

	broken := []struct {
		file    string
		apply   func() error
		kind    string
		name    string
		field   string
		message string
	}{
		{"unparsable", func() error {
			return stack.ApplyText("unparsable", []byte("apiVersion: v1\nkind: [Service\n"))
		}, "File", "unparsable.yaml", "", ""},
		{"bad-port", func() error { return stack.Apply("bad-port", object, badPort.Slice(4)) },
			"Service", "bad-port", "spec.ports[0].port", ""},
		{"bad-family", func() error { return stack.Apply("bad-family", badFamily) },
			"Service", "bad-family", "spec.clusterIPs[1]", ""},
		{"thief", func() error { return stack.ApplyService(thief) },
			"Service", "thief", "spec.externalIPs[0]", "claimed"},
		{"orphan", func() error { return stack.Apply("orphan", orphan.Slice(4)) },
			"EndpointSlice", "orphan-ipv4", "metadata.labels[kubernetes.io/service-name]", ""},
	}
	ctx := harness.Limit(t, 60*time.Second)
	for _, bad := range broken {
		t.Run(bad.file, func(t *testing.T) {
			if err := bad.apply(); err != nil {
				t.Fatal(err)
			}
			err := testbed.Within(10*time.Second, func() error {
				status, err := stack.Calculator.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
				if err != nil {
					return err
				}
				for _, problem := range status.GetProblems() {
					if problem.GetKind() == bad.kind && strings.Contains(problem.GetName(), bad.name) &&
						problem.GetField() == bad.field && strings.Contains(problem.GetMessage(), bad.message) {
						return nil
					}
				}
				return fmt.Errorf("problems do not name %s %s, field %q: %v", bad.kind, bad.name, bad.field, status.GetProblems())
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	// The claimed address still leads to the older service, and new objects
	// are still taken.
	fresh := newService("fresh", 9, pods[1].Endpoint())
	serve(t, stack, good, claimed, fresh)
	for _, service := range []testbed.Service{good, claimed, fresh} {
		for _, family := range families {
			p := prober(t, stack, &pods[0].Host, false)
			if answer := ask(t, p, probe.Dial{Network: probe.TCP, Target: clusterIP(service, family)}); answer.Server != pods[1].Name {
				t.Errorf("%s: %+v", service.Name, answer)
			}
		}
	}

	// A file that becomes unreadable takes nothing away.
	if err := stack.ApplyText("service-default-good", []byte("apiVersion: v1\nkind: [Service\n")); err != nil {
		t.Fatal(err)
	}
	err := testbed.Within(10*time.Second, func() error {
		status, err := stack.Calculator.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		for _, problem := range status.GetProblems() {
			if problem.GetKind() == "File" && strings.Contains(problem.GetName(), "service-default-good") {
				return nil
			}
		}
		return fmt.Errorf("no problem names the file: %v", status.GetProblems())
	})
	if err != nil {
		t.Error(err)
	}
	for _, agent := range stack.Agents {
		if err := agent.WaitServices(ctx, good); err != nil {
			t.Errorf("service of a file that became unreadable: %v", err)
		}
	}

	// Mended, the problems go.
	serve(t, stack, good)
	for _, bad := range broken {
		if err := stack.Delete(bad.file); err != nil {
			t.Fatal(err)
		}
	}
	if err := stack.DeleteService(thief); err != nil {
		t.Fatal(err)
	}
	err = testbed.Within(10*time.Second, func() error {
		status, err := stack.Calculator.GetStatus(ctx, &calculatorv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if len(status.GetProblems()) > 0 {
			return fmt.Errorf("problems of what is gone: %v", status.GetProblems())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
