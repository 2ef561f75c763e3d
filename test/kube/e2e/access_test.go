// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	_ "google.golang.org/grpc/channelz/grpc_channelz_v1" // registered by servers
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1alpha" // registered by servers
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/proto/announcement"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/testbed"
)

// startGuarded is a cluster with a calculator that lets in who shows a token.
func startGuarded(ctx context.Context, t *testing.T) (*callers, *replica) {
	t.Helper()
	f := startPlane(t, testbed.Options{Nodes: 2, PodsPerNode: 1})
	r := f.newTrusted(t, 0)
	f.apply(ctx, t, r.pod(true))
	r.startSynced(ctx, t)
	f.awaitAnnounced(ctx, t, 1, r)
	c := f.newCallers(ctx, t)
	_, c.authorities = f.announced(ctx, t)
	return c, r
}

// walk calls every RPC of a server as every kind of caller and compares with the
// table that operators are shown.
func walk(ctx context.Context, t *testing.T, server string, operator, remote *grpc.ClientConn, tokens map[string]string) {
	t.Helper()
	table := documented(t)
	registered := methods(ctx, t, operator)
	if len(registered) < 10 {
		t.Fatalf("%s has registered only %v", server, registered)
	}
	for method := range registered {
		row, ok := table[method]
		if !ok {
			t.Errorf("%s registers %s, for which docs/security.md has no row", server, method)
			continue
		}
		try := func(kind string, conn *grpc.ClientConn, token string) {
			err := attempt(with(ctx, token), conn, method)
			// What is registered on the socket alone is not there for others.
			absent := status.Code(err) == codes.Unimplemented && strings.Contains(err.Error(), "unknown service")
			if allowed := access.ReasonOf(err) == "" && !absent; allowed != row[kind] {
				t.Errorf("%s of %s as %s: %v; it should be let through: %t", method, server, kind, err, row[kind])
			}
		}
		try("operator", operator, "")
		for kind, token := range tokens {
			try(strings.TrimRight(kind, "0123456789"), remote, token)
		}
	}
}

// TestEveryRPC walks every RPC of a calculator as every kind of caller, with
// tokens of a real API server, and tries every credential that should not count.
func TestEveryRPC(t *testing.T) {
	ctx := harness.Limit(t, 180*time.Second)
	c, r := startGuarded(ctx, t)
	operator, remote := dialSocket(t, r.socket()), c.dialTLS(t, c.Control, r.address, serverName)
	tokens := map[string]string{
		"anonymous": "", "agent1": c.agentToken(ctx, t, c.Nodes[0].Name), "agent2": c.agentToken(ctx, t, c.Nodes[1].Name),
		"account": c.token(ctx, t, "default", otherAccount, tokenAudience, nil),
		"reader":  c.token(ctx, t, "default", readerAccount, tokenAudience, nil),
	}
	walk(ctx, t, "the calculator", operator, remote, tokens)
	t.Run("refusals", func(t *testing.T) { c.testRefusals(ctx, t, remote, tokens) })
	t.Run("own node", func(t *testing.T) { c.testOwnNode(ctx, t, remote, tokens["agent1"]) })
	t.Run("millracectl", func(t *testing.T) { c.testReaderCommand(t, r, tokens) })
	t.Run("metrics", func(t *testing.T) {
		for _, series := range []string{
			`millrace_calculator_denied_calls_total{method="/millrace.dataplane.v1.SyncService/Sync",reason="FOREIGN_ACCOUNT"}`,
			`millrace_calculator_reviews_total{kind="token",result="accepted"}`,
			`millrace_calculator_reviews_total{kind="access",result="rejected"}`,
			`millrace_calculator_review_hits_total{age="fresh",kind="token"}`,
		} {
			if count, err := r.series(ctx, c.fixture, series); err != nil || count == 0 {
				t.Errorf("%s: %v, %v", series, count, err)
			}
		}
	})
}

// TestEveryRPCOfAnAgent walks every RPC of an agent, which serves by a certificate
// that the calculator has signed and has it review the tokens that are shown.
func TestEveryRPCOfAnAgent(t *testing.T) {
	ctx := harness.Limit(t, 180*time.Second)
	c, r := startGuarded(ctx, t)
	node, other := c.Nodes[0], c.Nodes[1]
	address := netip.AddrPortFrom(node.IPv4, testbed.AgentPort).String()
	agent := c.startTokenAgent(t, node, r.address)
	agent.SetArgs(append(agent.args, "--listen", address)...)
	agent.restart(t)
	agent.awaitTold(ctx, t, "--listen", "no certificate")
	agent.show(t, c.agentToken(ctx, t, node.Name))
	agent.waitInSync(ctx, t)

	operator := dialSocket(t, node.Socket)
	remote := c.dialTLS(t, &other.Host, address, announcement.AgentServerName(node.Name))
	forAgents := func(namespace, account string, pod *corev1.Pod) string {
		return c.token(ctx, t, namespace, account, "millrace-agent", pod)
	}
	reader := forAgents("default", readerAccount, nil)
	tokens := map[string]string{
		"anonymous": "", "account": forAgents("default", otherAccount, nil), "reader": reader,
		// Neither its own token nor one for agents lets an agent read another.
		"agent1": c.agentToken(ctx, t, other.Name), "agent2": forAgents(calculatorNamespace, agentAccount, c.pods[other.Name]),
	}
	if err := testbed.Eventually(ctx, func() error { return attempt(ctx, remote, healthv1.Health_Check_FullMethodName) }); err != nil {
		t.Fatal(err)
	}
	walk(ctx, t, "the agent", operator, remote, tokens)
	if status, err := agent.GetStatus(ctx, &agentv1.GetStatusRequest{}); err != nil || len(status.GetProblems()) != 0 {
		t.Errorf("problems %v, %v are left after a certificate was signed", status.GetProblems(), err)
	}

	const read = agentv1.AgentService_ListMaps_FullMethodName
	expectRefusal(t, "a token for calculators", attempt(with(ctx, c.token(ctx, t, "default", readerAccount, tokenAudience, nil)), remote, read),
		codes.Unauthenticated, access.ReasonForeignAudience)
	expectRefusal(t, "a token for agents, at the calculator", attempt(with(ctx, reader), c.dialTLS(t, c.Control, r.address, serverName), calculatorv1.CalculatorService_ListNodes_FullMethodName),
		codes.Unauthenticated, access.ReasonForeignAudience)
	for _, name := range []string{announcement.AgentServerName(other.Name), serverName, node.Name} {
		impostor := c.dialTLS(t, &other.Host, address, name)
		if _, err := healthv1.NewHealthClient(impostor).Check(ctx, &healthv1.HealthCheckRequest{}); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("the agent of %s passes for %s: %v", node.Name, name, err)
		}
	}
	// Without a calculator, who was reviewed may go on.
	r.kill(t)
	if err := attempt(with(ctx, reader), remote, read); access.ReasonOf(err) != "" {
		t.Errorf("a reader that was reviewed, while no calculator is there: %v", err)
	}
	expectRefusal(t, "one that was not", attempt(with(ctx, forAgents("default", readerAccount, nil)), remote, read),
		codes.Unavailable, access.ReasonReviewFailed)
}

// altered is a token with other claims; its signature does not fit any more.
func altered(t *testing.T, token string, change func(claims map[string]any)) string {
	t.Helper()
	parts := strings.Split(token, ".")
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	change(claims)
	if payload, err = json.Marshal(claims); err != nil {
		t.Fatal(err)
	}
	parts[1] = base64.RawURLEncoding.EncodeToString(payload)
	return strings.Join(parts, ".")
}

func (c *callers) testRefusals(ctx context.Context, t *testing.T, remote *grpc.ClientConn, tokens map[string]string) {
	const sync = dataplanev1.SyncService_Sync_FullMethodName
	agent := tokens["agent1"]
	for what, refused := range map[string]struct {
		token  string
		code   codes.Code
		reason string
	}{
		"no token":             {"", codes.Unauthenticated, access.ReasonNoCredential},
		"no token of any kind": {"nonsense", codes.Unauthenticated, access.ReasonTokenMalformed},
		"the API server's":     {c.token(ctx, t, calculatorNamespace, agentAccount, "", c.pods[c.Nodes[0].Name]), codes.Unauthenticated, access.ReasonForeignAudience},
		"another audience":     {c.token(ctx, t, calculatorNamespace, agentAccount, "vault", c.pods[c.Nodes[0].Name]), codes.Unauthenticated, access.ReasonForeignAudience},
		"an expired one":       {altered(t, agent, func(claims map[string]any) { claims["exp"] = time.Now().Add(-time.Hour).Unix() }), codes.Unauthenticated, access.ReasonTokenExpired},
		"a forged one":         {altered(t, agent, func(claims map[string]any) { claims["jti"] = "forged" }), codes.Unauthenticated, access.ReasonTokenRejected},
		"a forged audience":    {altered(t, c.token(ctx, t, calculatorNamespace, agentAccount, "", nil), func(claims map[string]any) { claims["aud"] = tokenAudience }), codes.Unauthenticated, access.ReasonTokenRejected},
		"of no pod":            {c.token(ctx, t, calculatorNamespace, agentAccount, tokenAudience, nil), codes.PermissionDenied, access.ReasonTokenUnbound},
		"of another account":   {tokens["account"], codes.PermissionDenied, access.ReasonForeignAccount},
		"of one that may read": {tokens["reader"], codes.PermissionDenied, access.ReasonForeignAccount},
		"of the calculator":    {c.token(ctx, t, calculatorNamespace, calculatorAccount, tokenAudience, nil), codes.PermissionDenied, access.ReasonForeignAccount},
	} {
		expectRefusal(t, what, attempt(with(ctx, refused.token), remote, sync), refused.code, refused.reason)
	}
	// The pod of a token is gone, and another one of its name has come.
	admin, err := c.plane.Clientset()
	if err != nil {
		t.Fatal(err)
	}
	node := c.Nodes[1]
	unused := c.agentToken(ctx, t, node.Name)
	none := int64(0)
	if err := admin.CoreV1().Pods(calculatorNamespace).Delete(ctx, c.pods[node.Name].Name, metav1.DeleteOptions{GracePeriodSeconds: &none}); err != nil {
		t.Fatal(err)
	}
	c.pods[node.Name] = c.addAgentPod(ctx, t, node)
	expectRefusal(t, "of a pod that is gone", attempt(with(ctx, unused), remote, sync), codes.Unauthenticated, access.ReasonTokenRejected)
	if err := attempt(with(ctx, c.agentToken(ctx, t, node.Name)), remote, sync); access.ReasonOf(err) != "" {
		t.Errorf("the pod that took its place: %v", err)
	}
}

// testOwnNode: an agent gets what its own node is to have, and nothing of
// another's.
func (c *callers) testOwnNode(ctx context.Context, t *testing.T, remote *grpc.ClientConn, token string) {
	own, foreign := c.Nodes[0], c.Nodes[1]
	open := func(name string) (endpoints []string, err error) {
		ctx, cancel := context.WithCancel(with(ctx, token))
		defer cancel()
		stream, err := dataplanev1.NewSyncServiceClient(remote).Sync(ctx)
		if err != nil {
			return nil, err
		}
		hello := &dataplanev1.Hello{NodeName: name, AgentVersion: "test"}
		for kind := range dataplanev1.ResourceType_name {
			if kind != 0 {
				hello.Types = append(hello.Types, &dataplanev1.TypeSupport{Type: dataplanev1.ResourceType(kind), Schema: 1})
			}
		}
		if err := stream.Send(&dataplanev1.SyncRequest{Message: &dataplanev1.SyncRequest_Hello{Hello: hello}}); err != nil {
			return nil, err
		}
		for {
			answer, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			for _, resource := range answer.GetUpdate().GetUpserts() {
				if endpoint := resource.GetEndpoint(); endpoint != nil {
					endpoints = append(endpoints, endpoint.GetName())
				}
			}
			if answer.GetCommit() != nil {
				return endpoints, nil
			}
		}
	}
	_, err := open(foreign.Name)
	expectRefusal(t, "another node's name", err, codes.PermissionDenied, access.ReasonForeignNode)
	for _, name := range []string{own.Name, ""} {
		endpoints, err := open(name)
		if err != nil {
			t.Fatalf("as %q: %v", name, err)
		}
		if want := own.Pods[0].Name; len(endpoints) == 0 || !strings.Contains(fmt.Sprint(endpoints), want) {
			t.Errorf("as %q: endpoints %v; want %s among them", name, endpoints, want)
		}
		if other := foreign.Pods[0].Name; strings.Contains(fmt.Sprint(endpoints), other) {
			t.Errorf("as %q: endpoints %v; %s is another node's", name, endpoints, other)
		}
	}
}

// testReaderCommand reads by millracectl from another machine.
func (c *callers) testReaderCommand(t *testing.T, r *replica, tokens map[string]string) {
	ca, file := writeFile(t, "ca.crt", c.authorities), filepath.Join(t.TempDir(), "token")
	nodes := func(token string, args ...string) (string, error) {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := c.Nodes[0].Run(append([]string{binaries.Ctl, "nodes", "--calculator", r.address, "--token-file", file}, args...)...)
		return string(out), err
	}
	trust := []string{"--tls-ca", ca, "--tls-server-name", serverName}
	if out, err := nodes(tokens["reader"], trust...); err != nil || !strings.Contains(out, c.Nodes[1].Name) {
		t.Errorf("a reader: %v\n%s", err, out)
	}
	if out, err := nodes(tokens["account"], trust...); err == nil || !strings.Contains(out+err.Error(), calculatorv1.CalculatorService_ListNodes_FullMethodName) {
		t.Errorf("an account that may not read: %v\n%s; want an error that names what it may not", err, out)
	}
	if out, err := nodes(tokens["reader"], "--insecure"); err == nil || !strings.Contains(out+err.Error(), "--token-file needs TLS") {
		t.Errorf("without TLS: %v\n%s; want that the token is not sent", err, out)
	}
}
