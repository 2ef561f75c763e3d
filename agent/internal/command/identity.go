// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"

	"go.uber.org/zap"
	"google.golang.org/grpc/credentials"

	"github.com/millrace-project/millrace/agent/internal/identity"
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

// tokenProblems tells what is wrong with what the agent shows.
func (a *agent) tokenProblems() []string {
	if a.token == nil {
		return nil
	}
	return a.token.Problems()
}

// denied counts and logs calls that were refused.
func (a *agent) denied(_ context.Context, method string, caller access.Caller, err error) {
	reason := access.ReasonOf(err)
	a.metrics.DeniedCalls.WithLabelValues(method, reason).Inc()
	a.log.Debug("call refused", zap.String("method", method), zap.Stringer("caller", caller), zap.String("reason", reason), zap.Error(err))
}
