// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestUsage holds every command line that makes no sense to exit status 2 and
// one line that says what is allowed.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"--nonesuch", []string{"--nonesuch", "--agent", "-o/--output", "--timeout"}},
		{"conntrack --nonesuch", []string{"--address", "--service", "--calculator"}},
		{"status -x", []string{"'x'", "--agent"}},
		{"status -o xml", []string{"xml", "table, wide, json or yaml"}},
		{"status --timeout soon", []string{"soon", "--timeout"}},
		{"status --timeout 5", []string{`--timeout "5"`, "with its unit", "5s"}},
		{"status --timeout 0s", []string{"--timeout 0s", "above 0"}},
		{"nonesuch", []string{"nonesuch", "status", "completion", "dump"}},
		{"maps nonesuch", []string{"nonesuch", "allowed are dump, grow"}},
		{"services nonesuch", []string{"nonesuch", "allowed are get"}},
		{"endpoints a b", []string{"endpoints", "at most one", "NAME", "2"}},
		{"services get", []string{"[NAMESPACE/]NAME"}},
		{"services get -n a b/c", []string{"a", "b/c", "one is allowed"}},
		{"maps dump", []string{"NAME"}},
		{"maps grow established_v4", []string{"NAME", "ENTRIES"}},
		{"maps grow established_v4 many", []string{"ENTRIES", "many", "whole number"}},
		{"maps grow established_v4 0", []string{"ENTRIES", "whole number"}},
		{"dump", []string{"NODE"}},
		{"completion tcsh", []string{"tcsh", "bash", "zsh"}},
		{"status now", []string{"no arguments", "now"}},
		{"nodes", []string{"--calculator", envCalc}},
		{"dump n --calculator unix:///nonesuch --type pod", []string{"pod", "node-config", "backend-slice"}},
		{"conntrack --address here", []string{"here", "IPv4 or IPv6"}},
		{"conntrack --service cart", []string{"cart", "NAMESPACE/NAME"}},
		{"affinity --address here", []string{"here", "IPv4 or IPv6"}},
		{"affinity --service cart", []string{"cart", "NAMESPACE/NAME"}},
		{"status --agent nonesuch", []string{"nonesuch", "unix:///path and host:port"}},
		{"status --agent 192.0.2.1:7700", []string{"192.0.2.1:7700", "--tls-ca", "--insecure"}},
		{"status --agent 127.0.0.1:1 --tls-cert /x", []string{"--tls-key"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			code, stdout, stderr := run(t, nil, strings.Fields(c.args)...)
			if code != ExitUsage || stdout != "" {
				t.Errorf("exit %d, stdout %q; want exit %d and none", code, stdout, ExitUsage)
			}
			if strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "millracectl: ") {
				t.Errorf("stderr is not one line of millracectl's: %q", stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q: %q", want, stderr)
				}
			}
		})
	}
}

// TestUnreachable says in one line what was tried, with whom, and why not.
func TestUnreachable(t *testing.T) {
	nowhere := "unix://" + filepath.Join(t.TempDir(), "nowhere.sock")
	for _, args := range []string{
		"status", "services", "services get a/b", "endpoints", "conntrack", "affinity", "maps", "maps dump a", "maps grow a 1", "diff", "repair",
		"nodes", "dump a",
	} {
		code, _, stderr := run(t, map[string]string{envAgent: nowhere, envCalc: nowhere}, strings.Fields(args)...)
		if code != ExitFailed || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, stderr %q; want exit 1 and one line", args, code, stderr)
		}
		for _, want := range []string{"cannot reach the", nowhere, "no such file or directory"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: stderr lacks %q: %q", args, want, stderr)
			}
		}
		if strings.Contains(stderr, "desc =") {
			t.Errorf("%s: stderr shows gRPC's wrapping: %q", args, stderr)
		}
	}
}

// TestWrongServer tells an agent from a calculator.
func TestWrongServer(t *testing.T) {
	calculator := serveUnix(t, "calculator.sock", &calls{}, (&fakeCalculator{}).register)
	code, _, stderr := run(t, nil, "maps", "--agent", calculator)
	if code != ExitFailed || !strings.Contains(stderr, "no Millrace agent") {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
}

// TestStatusHalf prints the server that answers although the other does not.
func TestStatusHalf(t *testing.T) {
	calculator := serveUnix(t, "calculator.sock", &calls{}, (&fakeCalculator{}).register)
	nowhere := "unix://" + filepath.Join(t.TempDir(), "nowhere.sock")
	code, stdout, stderr := run(t, nil, "status", "--agent", nowhere, "--calculator", calculator)
	if code != ExitFailed || !strings.Contains(stderr, nowhere) || !strings.Contains(stdout, "calculator calc-a") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	// A calculator alone may be named where there is no agent.
	code, stdout, stderr = run(t, nil, "status", "--calculator", calculator)
	if code != ExitOK || strings.Contains(stdout, "agent ") || stderr != "" {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
