// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/millrace-project/millrace/proto/access"
)

// through calls an RPC as somebody and returns who the RPC was told calls.
func through(gate *access.Gate, method string) (seen access.Caller, err error) {
	err = access.Try(gate, context.Background(), method, func(ctx context.Context) {
		seen, _ = access.CallerOf(ctx)
	})
	return seen, err
}

// TestEveryRule calls each RPC of the table as each kind of caller. Accounts
// become readers if they are permitted.
func TestEveryRule(t *testing.T) {
	refused := access.Deny(codes.PermissionDenied, access.ReasonNotAllowed, "no")
	for _, rule := range access.Rules() {
		for _, kind := range access.Kinds() {
			var denied error
			var asked string
			gate := &access.Gate{
				Authenticate: func(context.Context) (access.Caller, error) {
					caller := access.Caller{Kind: kind, Name: kind.String()}
					if kind == access.Reader {
						caller.Kind = access.Account
					}
					if kind == access.Agent {
						caller.Node = "n"
					}
					return caller, nil
				},
				Permit: func(_ context.Context, _ access.Caller, verb, method string) error {
					if asked = verb + " " + method; kind == access.Reader {
						return nil
					}
					return refused
				},
				Denied: func(_ context.Context, method string, _ access.Caller, err error) {
					if method == rule.Method {
						denied = err
					}
				},
			}
			seen, err := through(gate, rule.Method)
			if want := rule.Allows(kind); (err == nil) != want {
				t.Errorf("%s as %s: %v, want it allowed: %t", rule.Method, kind, err, want)
			} else if err != denied {
				t.Errorf("%s as %s: %v, but told of %v", rule.Method, kind, err, denied)
			}
			if err != nil && access.ReasonOf(err) == "" {
				t.Errorf("%s as %s: %v carries no reason", rule.Method, kind, err)
			}
			if err == nil && !rule.Allows(access.Anonymous) && seen.Kind != kind {
				t.Errorf("%s as %s: the RPC was told of %v", rule.Method, kind, seen.Kind)
			}
			if asked != "" && asked != access.Get+" "+rule.Method {
				t.Errorf("%s as %s: asked whether it may %s", rule.Method, kind, asked)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	const sync, unknown = "/millrace.dataplane.v1.SyncService/Sync", "/millrace.dataplane.v1.SyncService/Nonesuch"
	as := func(caller access.Caller) *access.Gate {
		return &access.Gate{Authenticate: func(context.Context) (access.Caller, error) { return caller, nil }}
	}
	for _, c := range []struct {
		gate   *access.Gate
		method string
		code   codes.Code
		reason string
	}{
		{access.Local(), unknown, codes.PermissionDenied, access.ReasonNoRule},
		{&access.Gate{}, sync, codes.Unauthenticated, access.ReasonNoCredential},
		{as(access.Caller{}), sync, codes.Unauthenticated, access.ReasonNoCredential},
		{as(access.Caller{Kind: access.Account, Name: "a"}), sync, codes.PermissionDenied, access.ReasonForeignAccount},
		{as(access.Caller{Kind: access.Account, Name: "a", Unbound: true}), sync, codes.PermissionDenied, access.ReasonTokenUnbound},
		{as(access.Caller{Kind: access.Account, Name: "a"}), "/millrace.agent.v1.AgentService/GetStatus", codes.PermissionDenied, access.ReasonNotAllowed},
	} {
		if _, err := through(c.gate, c.method); status.Code(err) != c.code || access.ReasonOf(err) != c.reason {
			t.Errorf("%s: %v, want %s with reason %s", c.method, err, c.code, c.reason)
		}
	}
}

func TestNodeOf(t *testing.T) {
	agent := access.Caller{Kind: access.Agent, Node: "a"}
	for _, c := range []struct {
		caller        access.Caller
		claimed, node string
		reason        string
	}{
		{agent, "a", "a", ""}, {agent, "", "a", ""}, {agent, "b", "", access.ReasonForeignNode},
		{access.Caller{Kind: access.Operator}, "b", "b", ""},
		{access.Caller{Kind: access.Agent}, "b", "", access.ReasonNotAllowed},
		{access.Caller{Kind: access.Reader}, "b", "", access.ReasonNotAllowed},
		{access.Caller{}, "b", "", access.ReasonNotAllowed},
	} {
		node, err := access.NodeOf(access.WithCaller(context.Background(), c.caller), c.claimed)
		if node != c.node || access.ReasonOf(err) != c.reason {
			t.Errorf("%v of %q: %q, %v", c.caller, c.claimed, node, err)
		}
	}
	if _, err := access.NodeOf(context.Background(), "b"); access.ReasonOf(err) != access.ReasonNotAllowed {
		t.Errorf("without a gate: %v", err)
	}
}

func TestCertified(t *testing.T) {
	for name, want := range map[string]access.Kind{"system:node:n1": access.Agent, "system:node:": access.Account, "admin": access.Account} {
		if got := access.Certified(pkix.Name{CommonName: name}); got.Kind != want || want == access.Agent && got.Node != "n1" {
			t.Errorf("%s: %+v, want %v", name, got, want)
		}
	}
}

func TestToken(t *testing.T) {
	for header, want := range map[string]string{"Bearer x.y": "x.y", "bearer x": "x", "Bearer ": "", "Basic abc": "", "": "", "Bearer": ""} {
		if got, ok := access.Token(header); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %t", header, got, ok)
		}
	}
}

// TestDocumented compares the table of docs/security.md with the rules.
func TestDocumented(t *testing.T) {
	content, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if cells := strings.Split(line, "|"); len(cells) == 8 && strings.HasPrefix(strings.TrimSpace(cells[1]), "`/") {
			documented[strings.Trim(cells[1], " `")] = strings.Join(strings.Fields(strings.Join(cells[2:7], " ; ")), " ")
		}
	}
	for _, rule := range access.Rules() {
		var cells []string
		for _, kind := range access.Kinds() {
			if rule.Allows(kind) {
				cells = append(cells, "yes")
			} else {
				cells = append(cells, "-")
			}
		}
		if want := strings.Join(cells, " ; "); documented[rule.Method] != want {
			t.Errorf("docs/security.md says %q of %s; want\n%s", documented[rule.Method], rule.Method,
				fmt.Sprintf("| `%s` | %s |", rule.Method, strings.Join(cells, " | ")))
		}
		delete(documented, rule.Method)
	}
	for method := range documented {
		t.Errorf("docs/security.md has a row for %s, for which there is no rule", method)
	}
}
