// SPDX-License-Identifier: Apache-2.0

package command_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/services/calculator/internal/command"
)

func TestWrongFlagsSayWhatIsAllowed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		want []string
	}{
		{"--nonsense", []string{"--nonsense", "allowed are", "--source"}},
		{"--source=etcd", []string{"--source", "kube, dir"}},
		{"--source=dir", []string{"--manifests must name a directory"}},
		{"--source=dir --manifests=" + dir + "/absent", []string{"--manifests", "no such file"}},
		{"--source=dir --manifests=" + file, []string{"--manifests", "not a directory"}},
		{"--source=dir --manifests=" + dir + " --kubeconfig=x", []string{"--kubeconfig is for --source=kube"}},
		{"--manifests=" + dir, []string{"--manifests is for --source=dir"}},
		{"--log-level=loud", []string{"--log-level", "debug, info, warn, error"}},
		{"--log-format=xml", []string{"--log-format", "json, console"}},
		{"--listen=7700", []string{"--listen", "HOST:PORT"}},
		{"--listen=127.0.0.1:99999", []string{"--listen", "99999", "0 to 65535"}},
		{"--listen=0.0.0.0:7700", []string{"not loopback", "--insecure", "--tls-cert"}},
		{"--listen=:7700", []string{"not loopback", "--insecure"}},
		{"--listen=", []string{"--listen and --socket"}},
		{"--tls-cert=x", []string{"--tls-key"}},
		{"--tls-cert=" + file + " --tls-key=" + file, []string{"--tls-cert, --tls-key"}},
		{"--tls-client-ca=" + file, []string{"--tls-client-ca only with them"}},
		{"--tls-ca=" + file, []string{"--tls-ca is for a certificate from --tls-cert"}},
		{"--tls-cert=" + file + " --tls-key=" + file + " --tls-ca=" + file, []string{"--tls-ca", "no certificate"}},
		{"--ca-lifetime=1s", []string{"--ca-lifetime", "at least a minute"}},
		{"--ca-lifetime=3h --ca-announce-time=61m", []string{"--ca-announce-time", "a third of --ca-lifetime", "1h0m0s"}},
		{"--calculator-selector==", []string{"--calculator-selector", "no selector"}},
		{"--metrics-listen=9", []string{"--metrics-listen", "HOST:PORT"}},
		{"--metrics-listen=127.0.0.1:-1", []string{"--metrics-listen", "0 to 65535"}},
		{"--pprof=maybe", []string{`--pprof "maybe"`, "true or false"}},
		{"--drain-time=5", []string{`--drain-time "5"`, "with its unit", "5s"}},
		{"--drain-time=-1s", []string{"--drain-time", "negative"}},
		{"--drain-time=soon", []string{"--drain-time", "soon"}},
		{"serve", []string{`"serve"`, "no arguments"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := command.Main(context.Background(), strings.Fields(test.args), &stdout, &stderr); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			if stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("want one line on standard error, got %q and %q", stdout.String(), stderr.String())
			}
			for _, want := range test.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("%q does not contain %q", stderr.String(), want)
				}
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	for args, want := range map[string]string{"--help": "--manifests", "version": "millrace-calculator "} {
		var stdout, stderr bytes.Buffer
		if code := command.Main(context.Background(), []string{args}, &stdout, &stderr); code != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), want) {
			t.Errorf("%s: exit code %d, output %q, errors %q", args, code, stdout.String(), stderr.String())
		}
	}
}
