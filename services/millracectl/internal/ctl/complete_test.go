// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"regexp"
	"strings"
	"testing"
)

// TestCompletion completes names by asking the servers, and gives a script for
// every shell.
func TestCompletion(t *testing.T) {
	env := map[string]string{
		envAgent: serveUnix(t, "agent.sock", &calls{}, (&fakeAgent{}).register),
		envCalc:  serveUnix(t, "calculator.sock", &calls{}, (&fakeCalculator{}).register),
	}
	for args, want := range map[string]string{
		"__complete maps dump ":                "backends_v4\nconfig\n",
		"__complete dump ":                     "node-1\nnode-2\n",
		"__complete services get kube-system/": "kube-system/dns\n",
		"__complete status --output ":          "table\nwide\njson\nyaml\n",
		"__complete dump --type ":              "node-config\nnode\nendpoint\nbackend-slice\nservice\n",
	} {
		words := strings.Split(args, " ")
		code, stdout, stderr := run(t, env, words...)
		if code != ExitOK || !strings.Contains(stdout, want) {
			t.Errorf("%q: exit %d, printed %q (%s); want %q", args, code, stdout, stderr, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := run(t, env, "completion", shell)
		if code != ExitOK || !strings.Contains(stdout, "millracectl") {
			t.Errorf("completion %s: exit %d: %s", shell, code, stderr)
		}
	}
}

// TestHelpOfFlags: what stands for a flag's value is one word. Words between
// backquotes would stand there.
func TestHelpOfFlags(t *testing.T) {
	code, stdout, stderr := run(t, nil, "status", "--help")
	if code != ExitOK || !strings.Contains(stdout, "--token-file") {
		t.Fatalf("exit %d, printed %q (%s)", code, stdout, stderr)
	}
	form := regexp.MustCompile(`^ +(-[a-z], )?--[a-z-]+( [a-zA-Z0-9]+)?  +[^ ]`)
	for line := range strings.Lines(stdout) {
		if strings.Contains(line, "--") && strings.HasPrefix(line, "  ") && !strings.Contains(line, "millracectl") && !form.MatchString(line) {
			t.Errorf("%q is not a flag, its value and what it means", line)
		}
	}
}
