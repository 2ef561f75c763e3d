// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/millrace-project/millrace/proto/access"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

// TestReviewAccess: what is shown to an agent is judged as if it had been shown
// here, but that it must be issued for agents.
func TestReviewAccess(t *testing.T) {
	s := newServer()
	s.answer = func(answer *authenticationv1.TokenReviewStatus) {
		answer.Authenticated, answer.Audiences, answer.User.Username = true, []string{"agents"}, "u"
	}
	s.allow = func(spec authorizationv1.SubjectAccessReviewSpec) bool {
		return spec.User == "u" && spec.NonResourceAttributes.Path == "/millrace.agent.v1.AgentService/ListMaps"
	}
	service := &Service{Authenticator: s.Authenticator}
	try := func(audience, method string) error {
		shown := jwt(fmt.Sprintf(`{"aud":[%q],"exp":%d}`, audience, time.Now().Add(time.Hour).Unix()))
		_, err := service.ReviewAccess(context.Background(), &calculatorv1.ReviewAccessRequest{Token: shown, Method: method})
		return err
	}
	const maps, services = "/millrace.agent.v1.AgentService/ListMaps", "/millrace.agent.v1.AgentService/ListServices"
	if err := try("agents", maps); err != nil {
		t.Error(err)
	}
	wantReason(t, try("agents", services), codes.PermissionDenied, access.ReasonNotAllowed)
	wantReason(t, try("here", maps), codes.Unauthenticated, access.ReasonForeignAudience)
	for _, method := range []string{"", "/s/M", "/millrace.agent.v1.AgentService/Repair"} {
		if err := try("agents", method); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v; want InvalidArgument", method, err)
		}
	}
	s = newServer()
	s.answer = func(answer *authenticationv1.TokenReviewStatus) {
		agentOf("n1")(answer)
		answer.Audiences = []string{"agents"}
	}
	service.Authenticator = s.Authenticator
	wantReason(t, try("agents", maps), codes.PermissionDenied, access.ReasonNotAllowed)
}

// TestSignCertificate: the name is the caller's, whatever the request says.
func TestSignCertificate(t *testing.T) {
	var names []string
	service := &Service{Sign: func(_ crypto.PublicKey, name string) ([]*x509.Certificate, error) {
		names = append(names, name)
		return []*x509.Certificate{{Raw: []byte("leaf")}, {Raw: []byte("bridge")}}, nil
	}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"millrace-calculator"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	agent := access.WithCaller(context.Background(), access.Caller{Kind: access.Agent, Node: "n1"})
	signed, err := service.SignCertificate(agent, &calculatorv1.SignCertificateRequest{Request: request})
	if err != nil || len(signed.GetChain()) != 2 || len(names) != 1 || names[0] != "n1.agent.millrace" {
		t.Errorf("%v, %v; signed for %v", signed, err, names)
	}
	request[len(request)-1] ^= 1
	for what, bad := range map[string][]byte{"none": nil, "one that is not signed by its key": request} {
		if _, err := service.SignCertificate(agent, &calculatorv1.SignCertificateRequest{Request: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v; want InvalidArgument", what, err)
		}
	}
	_, err = service.SignCertificate(context.Background(), &calculatorv1.SignCertificateRequest{})
	wantReason(t, err, codes.PermissionDenied, access.ReasonNotAllowed)
	service.Sign = nil
	_, err = service.SignCertificate(agent, &calculatorv1.SignCertificateRequest{})
	wantReason(t, err, codes.FailedPrecondition, ReasonNoAuthority)
}
