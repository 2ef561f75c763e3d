// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/reliability"
	"github.com/millrace-project/millrace/test/testbed"
)

// testWithoutAPIServer: a calculator that has read everything serves agents
// that come anew; one that has read nothing serves nobody and says why.
func (f *sourceFaults) testWithoutAPIServer(t *testing.T) {
	ctx := harness.Limit(t, 90*time.Second+longAway())
	late := f.newReplica(t, 2, f.kubeconfig)
	f.serve(ctx, t, f.near)
	gone := newService("gone", 21, false, f.near.Endpoint())
	f.apply(ctx, t, gone.Objects()...)
	f.waitServices(ctx, t, gone)
	if err := f.plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	server := netip.AddrPortFrom(f.Control.IPv4, apiServerPort).String()
	f.direct.awaitProblem(ctx, t, "Watch", "services", server, "connection refused", "what was read before stays in force")
	if _, err := f.direct.http(ctx, f.fixture, "/readyz"); err != nil {
		t.Errorf("a calculator that can serve is not ready: %v", err)
	}
	late.start(t)
	late.awaitProblem(ctx, t, "Watch", "services", server, "connection refused")
	if answer, err := late.http(ctx, f.fixture, "/readyz"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("a calculator that has read nothing answers %q, %v; want 503", answer, err)
	}
	out, err := f.Control.Run(binaries.Ctl, "--agent", "", "--calculator", "unix://"+late.socket(), "status")
	if text := string(out); err != nil && !strings.Contains(text, server) || !strings.Contains(text, "connection refused") {
		t.Errorf("millracectl status printed %v:\n%s", err, text)
	}

	f.restartAgents(t, late)
	f.awaitLastError(ctx, t, "has not read its source")
	f.waitServices(ctx, t, f.kept, gone)
	f.restartAgents(t, f.direct, f.relayed)
	for _, agent := range f.agents {
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	f.waitServices(ctx, t, f.kept, gone)
	<-time.After(longAway()) // that it stays away is what is tested

	if err := f.plane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	f.serve(ctx, t, f.far)
	f.delete(ctx, t, gone.Objects()...)
	f.waitNoServices(ctx, t, gone)
	late.await(ctx, t, "it has read everything", func(s *calculatorv1.GetStatusResponse) bool {
		return s.GetSynced() && len(s.GetProblems()) == 0
	})
	late.kill(t)
}

// longAway is how much longer than its checks take the API server is away.
func longAway() time.Duration {
	if reliability.Soak() {
		return time.Minute
	}
	return 0
}

// testWithoutEtcd kills etcd, which the API server outlives.
func (f *sourceFaults) testWithoutEtcd(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	if err := f.plane.KillEtcd(); err != nil {
		t.Fatal(err)
	}
	f.restartAgents(t, f.direct, f.relayed)
	for _, agent := range f.agents {
		if err := agent.WaitInSync(ctx); err != nil {
			t.Fatal(err)
		}
	}
	f.waitServices(ctx, t, f.kept)
	if err := f.plane.StartEtcd(ctx); err != nil {
		t.Fatal(err)
	}
	// The API server needs a moment to find it.
	if err := testbed.Eventually(ctx, func() error { return f.plane.Apply(ctx, f.kept.Objects()...) }); err != nil {
		t.Fatal(err)
	}
	f.serve(ctx, t, f.near)
}

// testWithoutRight makes the calculator's token worthless, and then writes
// another one to its file, as the kubelet does.
func (f *sourceFaults) testWithoutRight(t *testing.T) {
	ctx := harness.Limit(t, 60*time.Second)
	client, err := f.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	accounts := client.CoreV1().ServiceAccounts(calculatorNamespace)
	if err := accounts.Delete(ctx, calculatorAccount, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: calculatorNamespace, Name: calculatorAccount}}
	if _, err := accounts.Create(ctx, account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A new API server has no memory of having accepted the token.
	if err := f.plane.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	if err := f.plane.StartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	f.direct.awaitProblem(ctx, t, "Watch", "services", "credential is not accepted")
	f.waitServices(ctx, t, f.kept)
	f.writeToken(ctx, t)
	f.serve(ctx, t, f.far)
	for _, r := range []*replica{f.direct, f.relayed} {
		r.await(ctx, t, "no problem is left", func(s *calculatorv1.GetStatusResponse) bool { return len(s.GetProblems()) == 0 })
	}
}

// writeToken writes a new token of the calculator to its file.
func (f *sourceFaults) writeToken(ctx context.Context, t *testing.T) {
	t.Helper()
	token, err := f.plane.Token(ctx, calculatorNamespace, calculatorAccount)
	if err != nil {
		t.Fatal(err)
	}
	aside := f.tokenFile + ".new"
	if err := os.WriteFile(aside, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, f.tokenFile); err != nil {
		t.Fatal(err)
	}
}
