// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"crypto"
	"crypto/x509"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/proto/announcement"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

// Service implements AccessService.
type Service struct {
	calculatorv1.UnimplementedAccessServiceServer
	*Authenticator
	// Sign signs a server's certificate for a name; nil without an authority.
	Sign func(public crypto.PublicKey, name string) ([]*x509.Certificate, error)
}

// ReviewAccess implements AccessService.
func (s *Service) ReviewAccess(ctx context.Context, request *calculatorv1.ReviewAccessRequest) (*calculatorv1.ReviewAccessResponse, error) {
	rule, ok := access.RuleOf(request.GetMethod())
	if !ok || !rule.Allows(access.Reader) {
		return nil, status.Errorf(codes.InvalidArgument, "field method: %q is no RPC that a token can be allowed", request.GetMethod())
	}
	caller, err := s.review(ctx, request.GetToken(), s.AgentAudience)
	if err != nil {
		return nil, err
	}
	if caller.Kind != access.Account {
		return nil, access.Deny(codes.PermissionDenied, access.ReasonNotAllowed, "%s may not call %s", caller, rule.Method)
	}
	if err := s.permit(ctx, caller, rule.Verb, rule.Method); err != nil {
		return nil, err
	}
	return &calculatorv1.ReviewAccessResponse{Name: caller.Name}, nil
}

// ReasonNoAuthority is why no certificate is signed: the calculators' own comes
// from elsewhere.
const ReasonNoAuthority = "NO_AUTHORITY"

// SignCertificate implements AccessService.
func (s *Service) SignCertificate(ctx context.Context, request *calculatorv1.SignCertificateRequest) (*calculatorv1.SignCertificateResponse, error) {
	node, err := access.NodeOf(ctx, "")
	if err != nil {
		return nil, err
	}
	if s.Sign == nil {
		return nil, access.Deny(codes.FailedPrecondition, ReasonNoAuthority,
			"this calculator's certificate comes from elsewhere, so that it can sign none: give the agent --tls-cert and --tls-key")
	}
	csr, err := x509.ParseCertificateRequest(request.GetRequest())
	if err == nil {
		// Who asks has the key.
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "field request: %v", err)
	}
	chain, err := s.Sign(csr.PublicKey, announcement.AgentServerName(node))
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "signing the certificate of node %q: %v", node, err)
	}
	response := &calculatorv1.SignCertificateResponse{ExpireTime: timestamppb.New(chain[0].NotAfter)}
	for _, certificate := range chain {
		response.Chain = append(response.Chain, certificate.Raw)
	}
	return response, nil
}
