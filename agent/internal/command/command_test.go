// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// TestUsage makes mistakes: each is answered with one line that names the flag
// and says what is allowed, and status 2.
func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--nope"}, []string{"unknown flag: --nope", "--help"}},
		{[]string{"surplus"}, []string{`unknown argument "surplus"`, "version, cleanup and preflight"}},
		{[]string{"--fast-path=maybe"}, []string{`millrace-agent: --fast-path: "maybe" must be true or false` + "\n"}},
		{[]string{"--max-ids=-1"}, []string{`millrace-agent: --max-ids: "-1" must be a whole number from 0 to 4294967295` + "\n"}},
		{[]string{"--max-frontends=4294967296"}, []string{`--max-frontends: "4294967296" must be a whole number`}},
		{[]string{"--max-frontends", "many"}, []string{`--max-frontends: "many" must be a whole number`}},
		{[]string{"--grow-at=101"}, []string{"--grow-at", "percentage from 0 to 100"}},
		{[]string{"--log-level=loud"}, []string{"--log-level", "debug, info, warn or error"}},
		{[]string{"--log-format=xml"}, []string{"--log-format", "json or console"}},
		{[]string{"--node-name=a/b"}, []string{"--node-name"}},
		{[]string{"--calculator=nohost"}, []string{"--calculator", "unix:/path or HOST:PORT"}},
		{[]string{"--calculator=unix:relative"}, []string{"--calculator", "unix:/path or HOST:PORT"}},
		{[]string{"--calculator=192.0.2.1:7700"}, []string{"--calculator", "--tls-ca", "--insecure"}},
		{[]string{"--listen=0.0.0.0:1"}, []string{"--listen", "--tls-cert", "--insecure"}},
		{[]string{"--listen=127.0.0.1:1"}, []string{"--listen", "--tls-cert", "--insecure"}},
		{[]string{"--token-file=relative"}, []string{"--token-file", "absolute"}},
		{[]string{"--listen=nonsense"}, []string{"--listen", "HOST:PORT"}},
		{[]string{"--socket=relative"}, []string{"--socket", "absolute"}},
		{[]string{"--bpf-dir=relative"}, []string{"--bpf-dir", "absolute"}},
		{[]string{"--tls-cert=/x"}, []string{"--tls-cert", "--tls-key", "together"}},
		{[]string{"--tls-client-ca=/x"}, []string{"--tls-client-ca needs"}},
		{[]string{"--calculators-dir=relative"}, []string{"--calculators-dir", "absolute"}},
		{[]string{"--calculators-dir=/proc/self/cmdline"}, []string{"--calculators-dir", "no directory"}},
		{[]string{"--tls-server-name=x"}, []string{"--tls-server-name needs --tls-ca"}},
		{[]string{"--tls-ca=/nonexistent", "--calculator=192.0.2.1:7700"}, []string{"--tls-ca", "no such file"}},
		{[]string{"--snat-ports=5"}, []string{"--snat-ports", "FIRST-LAST"}},
		{[]string{"--snat-ports=9-5"}, []string{"--snat-ports", "FIRST-LAST"}},
		{[]string{"--snat-ports=1-65535"}, []string{"--snat-ports", "overlaps", "ip_local_port_range"}},
		{[]string{"--without=tcx,speed"}, []string{"--without", `"speed"`, "tcx, set-retval, mptcp-sock"}},
		{[]string{"preflight", "--without=speed"}, []string{"--without", `"speed"`}},
		{[]string{"preflight", "-o", "xml"}, []string{"--output", "text or json"}},
		{[]string{"--uplink-exclude=["}, []string{"--uplink-exclude", `"["`}},
		{[]string{"--cni-bin-dir=relative"}, []string{"--cni-bin-dir", "absolute"}},
		{[]string{"--cni-conf-dir=relative"}, []string{"--cni-conf-dir", "absolute"}},
		{[]string{"--cni-conf-dir=/etc/cni/net.d", "--socket="}, []string{"--cni-conf-dir", "--socket"}},
		{[]string{"--cni-add-timeout=0s"}, []string{"--cni-add-timeout", "from 1s to 1m"}},
		{[]string{"--cni-add-timeout=soon"}, []string{"--cni-add-timeout", `"soon" must be a duration`}},
		{[]string{"cleanup", "--cni-conf-dir=relative"}, []string{"--cni-conf-dir", "absolute"}},
		{[]string{"cleanup", "--log-level=loud"}, []string{"--log-level"}},
	} {
		var out, errs bytes.Buffer
		status := Main(context.Background(), c.args, &out, &errs)
		text := errs.String()
		if status != exitUsage || strings.Count(text, "\n") != 1 || out.Len() != 0 {
			t.Errorf("%q: status %d, stdout %q, stderr %q; want status 2 and one line", c.args, status, out.String(), text)
		}
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%q: %q lacks %q", c.args, text, want)
			}
		}
	}
}

// TestCleanup tells what was removed, and removes nothing that an agent uses.
func TestCleanup(t *testing.T) {
	dir := t.TempDir()
	cleanup := func(path string) (int, string, string) {
		var out, errs bytes.Buffer
		status := Main(context.Background(), []string{"cleanup", "--bpf-dir=" + path, "--state-dir=" + dir, "--sysctl-dir=" + dir}, &out, &errs)
		return status, out.String(), errs.String()
	}
	nothing := dir + "/nothing"
	if status, out, errs := cleanup(nothing); status != exitOK || out != "nothing pinned at "+nothing+"\n" {
		t.Errorf("nothing there: status %d, %q, %q", status, out, errs)
	}
	lock, err := mbpf.LockPins(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() //nolint:errcheck // of the test
	if status, out, errs := cleanup(dir); status != exitFailed || out != "" || strings.Count(errs, "\n") != 1 ||
		!strings.Contains(errs, dir+": another agent uses it") {
		t.Errorf("in use: status %d, %q, %q", status, out, errs)
	}
}

func TestVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if status := Main(context.Background(), []string{"version"}, &out, &errs); status != exitOK || !strings.HasPrefix(out.String(), "millrace-agent ") {
		t.Fatalf("status %d, %q, %q", status, out.String(), errs.String())
	}
}

func TestLocalPorts(t *testing.T) {
	snat := bpf.PortRange{First: 20000, Last: 29999}
	for content, ok := range map[string]bool{
		"32768\t60999\n": true, "30000\t60999\n": true, "29999\t60999\n": false, "1024\t20000\n": false, "x": false,
	} {
		if err := checkLocalPorts(snat, content); (err == nil) != ok {
			t.Errorf("%q: %v", content, err)
		}
	}
}

// TestNoKubernetes keeps Kubernetes clients out of what runs on every node.
func TestNoKubernetes(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/millrace-project/millrace/agent").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, out)
	}
	if !strings.Contains(string(out), "google.golang.org/grpc") {
		t.Fatalf("go list says too little: %s", out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "k8s.io/") || strings.HasPrefix(line, "sigs.k8s.io/") {
			t.Errorf("the agent depends on %s", line)
		}
	}
}

// TestCleanupAfterwards removes the log only when told to, and stays.
func TestCleanupAfterwards(t *testing.T) {
	state, fallback := t.TempDir(), t.TempDir()
	o := &options{stateDir: state, fallbackDir: fallback}
	files := []string{filepath.Join(state, "state.log"), filepath.Join(state, "lock"), o.fallbackLog()}
	other := filepath.Join(state, "of-somebody-else")
	for _, file := range append(files, other) {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there := func(file string) bool { _, err := os.Lstat(file); return err == nil }
	args := []string{"cleanup", "--bpf-dir=" + state + "/nothing", "--state-dir=" + state, "--state-fallback-dir=" + fallback, "--sysctl-dir=" + state}
	var out, errs bytes.Buffer
	if status := Main(context.Background(), args, &out, &errs); status != exitOK {
		t.Fatalf("status %d, %q", status, errs.String())
	}
	for _, file := range files {
		if !there(file) {
			t.Errorf("%s was removed", file)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() { ended <- Main(ctx, append(args, "--remove-state", "--stay"), &out, &errs) }()
	for deadline := time.Now().Add(20 * time.Second); there(files[0]) || there(files[1]) || there(files[2]); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not removed in 20 s: %v", files)
		}
	}
	select {
	case status := <-ended:
		t.Errorf("it did not stay: status %d, %q", status, errs.String())
	default:
		stop()
		if status := <-ended; status != exitOK {
			t.Errorf("status %d, %q", status, errs.String())
		}
	}
	stop()
	if !there(other) {
		t.Errorf("%s was removed", other)
	}
}
