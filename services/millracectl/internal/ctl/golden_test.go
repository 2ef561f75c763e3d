// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// run runs one command line with an environment and returns what it printed.
func run(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	app := App{
		Version: "v1.2.3", Stdout: &out, Stderr: &errOut,
		Getenv: func(name string) string { return env[name] },
		Now:    func() time.Time { return testNow },
	}
	code = app.Run(context.Background(), args)
	return code, out.String(), errOut.String()
}

// goldenCases together use every RPC; TestEveryRPC holds them to it.
var goldenCases = []struct {
	name string
	args string
}{
	{"status", "status"},
	{"status-wide", "status -o wide"},
	{"status-json", "status -o json"},
	{"nodes", "nodes"},
	{"nodes-wide", "nodes -o wide"},
	{"nodes-yaml", "nodes -o yaml"},
	{"services", "services"},
	{"services-wide", "services -o wide"},
	{"services-namespace", "services -n kube-system"},
	{"services-none", "services -n empty"},
	{"services-get", "services get shop/a-service-with-a-name-longer-than-any-column-would-be-cut-at"},
	{"services-get-yaml", "services get -n kube-system dns -o yaml"},
	{"services-get-none", "services get nowhere/dns"},
	{"endpoints", "endpoints"},
	{"endpoints-wide", "endpoints -o wide -n shop cart-0"},
	{"endpoints-json", "endpoints -o json"},
	{"conntrack", "conntrack"},
	{"conntrack-wide", "conntrack -o wide --service shop/cart"},
	{"conntrack-json", "conntrack -o json"},
	{"conntrack-none-json", "conntrack -o json --address 192.0.2.77"},
	{"affinity", "affinity"},
	{"affinity-wide", "affinity -o wide --service shop/cart"},
	{"affinity-none-json", "affinity -o json --address 192.0.2.77"},
	{"maps", "maps"},
	{"maps-wide", "maps -o wide"},
	{"maps-json", "maps -o json"},
	{"maps-dump", "maps dump backends_v4"},
	{"maps-dump-unknown", "maps dump nonesuch"},
	{"maps-grow", "maps grow established_v4 1048576"},
	{"maps-grow-json", "maps grow established_v4 1048576 -o json"},
	{"maps-grow-fixed", "maps grow config 2"},
	{"diff", "diff"},
	{"diff-yaml", "diff -o yaml"},
	{"repair", "repair"},
	{"repair-json", "repair -o json"},
	{"dump", "dump node-1"},
	{"dump-json", "dump node-1 --type endpoint,node -o json"},
	{"dump-unknown", "dump node-9"},
	{"version", "version"},
	{"version-json", "version -o json"},
}

func runGolden(t *testing.T) *calls {
	recorded := &calls{}
	agent := serveUnix(t, "agent.sock", recorded, (&fakeAgent{differences: []*agentv1.DiffDesiredResponse{
		{Object: "frontends_v4", Key: "10.96.0.7:80/TCP", Desired: "service 5, backends 0+2"},
		{Object: "veth1", Key: "tcx/egress", Desired: "pod_egress", Actual: "none"},
	}}).register)
	calculator := serveUnix(t, "calculator.sock", recorded, (&fakeCalculator{}).register)
	env := map[string]string{envAgent: agent, envCalc: calculator}
	for _, c := range goldenCases {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := run(t, env, strings.Fields(c.args)...)
			got := fmt.Sprintf("$ millracectl %s\n%s--- stderr\n%s--- exit %d\n", c.args, stdout, stderr, code)
			got = strings.NewReplacer(agent, "AGENT", calculator, "CALCULATOR").Replace(got)
			path := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant (%s; -update writes it anew):\n%s", got, path, want)
			}
		})
	}
	return recorded
}

// TestGolden holds every command's output to its golden file, and the commands
// to asking every RPC of both services.
func TestGolden(t *testing.T) {
	recorded := runGolden(t)
	for _, file := range []protoreflect.FileDescriptor{
		agentv1.File_millrace_agent_v1_agent_proto,
		calculatorv1.File_millrace_calculator_v1_calculator_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := fmt.Sprintf("/%s/%s", service.FullName(), service.Methods().Get(j).Name())
				if !recorded.seen[method] {
					t.Errorf("no subcommand in goldenCases asks %s", method)
				}
			}
		}
	}
}

// TestCleanDiff: nothing differs, nothing remains, nothing fails.
func TestCleanDiff(t *testing.T) {
	agent := serveUnix(t, "agent.sock", &calls{}, (&fakeAgent{}).register)
	for args, want := range map[string]string{
		"diff":          "",
		"diff -o json":  "[]\n",
		"repair":        "4 differences mended, 0 remaining\n",
		"conntrack":     "",
		"affinity":      "",
		"services -n x": "",
	} {
		if args == "conntrack" || args == "affinity" {
			args += " --address 192.0.2.77"
		}
		code, stdout, _ := run(t, map[string]string{envAgent: agent}, strings.Fields(args)...)
		if code != ExitOK || stdout != want {
			t.Errorf("millracectl %s: exit %d, printed %q; want exit 0 and %q", args, code, stdout, want)
		}
	}
}

// TestStatusNotConnected shows why an agent has no calculator.
func TestStatusNotConnected(t *testing.T) {
	agent := serveUnix(t, "agent.sock", &calls{}, (&fakeAgent{disconnect: true}).register)
	code, stdout, stderr := run(t, nil, "status", "--agent", agent)
	if code != ExitOK || stderr != "" {
		t.Errorf("exit %d, stderr %q", code, stderr)
	}
	if want := "not connected: UNAVAILABLE: NOT_SYNCED"; !strings.Contains(stdout, want) {
		t.Errorf("output lacks %q:\n%s", want, stdout)
	}
}
