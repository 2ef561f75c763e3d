// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"crypto/tls"
	"fmt"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"

	"github.com/millrace-project/millrace/agent/internal/api"
	"github.com/millrace-project/millrace/agent/internal/identity"
	"github.com/millrace-project/millrace/agent/internal/syncclient"
	"github.com/millrace-project/millrace/proto/access"
)

// showToken returns what the agent shows calculators; nil for nothing.
func (a *agent) showToken() credentials.PerRPCCredentials {
	if a.tokenFile == "" {
		return nil
	}
	a.token = identity.NewTokenFile(a.tokenFile)
	return a.token
}

// identityProblems tells what is wrong with what the agent shows.
func (a *agent) identityProblems() (all []string) {
	if a.token != nil {
		all = a.token.Problems()
	}
	if a.served != nil {
		all = append(all, a.served.Problems()...)
	}
	return all
}

// checkListen tells what is wrong with how --listen would be protected. Whoever
// can open the socket may change the node, so root can; on a port that would be
// every process.
func (o *options) checkListen() error {
	if o.listen == "" || o.tls.Cert != "" || o.tls.Insecure || o.tokenFile != "" {
		return nil
	}
	return fmt.Errorf("--listen: %q: give --tls-cert and --tls-key, or --token-file to have calculators sign a certificate, or --insecure to let everybody who reaches it in", o.listen)
}

// signed tells that calculators sign the certificate that --listen is served
// with.
func (o *options) signed() bool {
	return o.listen != "" && o.tls.Cert == "" && !o.tls.Insecure
}

// guard returns what protects --listen. Calculators are asked by the
// connection of the stream.
func (a *agent) guard(client *syncclient.Client) (api.Guard, error) {
	guard := api.Guard{Denied: a.denied, Gate: identity.Gate(identity.NewReviewer(client.Connection), a.denied)}
	if a.signed() {
		a.served = identity.NewCertificate(client.Connection, a.log)
		guard.TLS = &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: a.served.Get}
		return guard, nil
	}
	config, err := a.tlsFor("--listen", a.listen)
	if config != nil && config.ClientAuth == tls.RequireAndVerifyClientCert {
		config.ClientAuth = tls.VerifyClientCertIfGiven // others show a token
	}
	guard.TLS = config
	return guard, err
}

// keepCertificate runs until ctx ends, if calculators sign the certificate.
func (a *agent) keepCertificate(ctx context.Context) {
	if a.served != nil {
		a.served.Run(ctx)
	}
}

// denied counts and logs calls that were refused.
func (a *agent) denied(_ context.Context, method string, caller access.Caller, err error) {
	reason := access.ReasonOf(err)
	a.metrics.DeniedCalls.WithLabelValues(method, reason).Inc()
	a.log.Debug("call refused", zap.String("method", method), zap.Stringer("caller", caller), zap.String("reason", reason), zap.Error(err))
}
