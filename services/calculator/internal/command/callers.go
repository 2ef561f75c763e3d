// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/calc/problem"
	"github.com/millrace-project/millrace/proto/access"
	"github.com/millrace-project/millrace/services/calculator/internal/auth"
	"github.com/millrace-project/millrace/services/calculator/internal/source/kube"
)

// callerFlags are the flags about who may call.
type callerFlags struct {
	audience      string
	agentAudience string
	agentAccount  string

	agentUser string // of agentAccount
}

func (f *callerFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.audience, "token-audience", "millrace-calculator", "audience that callers' tokens must be issued for")
	flags.StringVar(&f.agentAudience, "agent-token-audience", "millrace-agent", "audience that tokens must be issued for which are shown to agents")
	flags.StringVar(&f.agentAccount, "agent-account", "millrace-system:millrace-agent", "service account of the agents, NAMESPACE:NAME")
}

// check tells what is wrong with the values.
func (f *callerFlags) check(o *options) (err error) {
	if f.audience == "" || f.agentAudience == "" || f.audience == f.agentAudience {
		// An agent could else show calculators what was shown to it.
		return fmt.Errorf("--token-audience and --agent-token-audience: %q and %q must be two different names", f.audience, f.agentAudience)
	}
	if f.agentUser, err = auth.ServiceAccount(f.agentAccount); err != nil {
		return fmt.Errorf("--agent-account: %w", err)
	}
	if o.source == "dir" && !o.plaintext() && o.tls.ClientCAFile == "" {
		return fmt.Errorf("--listen with TLS and --source=dir needs --tls-client-ca: there is no API server to review tokens, so that nobody could call")
	}
	return nil
}

// plaintext tells whether nothing protects --listen, which is allowed on
// loopback, or where the operator has said so.
func (o *options) plaintext() bool {
	return o.credentials == nil || o.credentials.Info().SecurityProtocol == "insecure"
}

// newAuthenticator returns what says who calls. Without the configuration of an
// API server only certificates count.
func (c *calculator) newAuthenticator(config *rest.Config, log *zap.Logger) (*auth.Authenticator, error) {
	options := auth.Options{
		Audience: c.options.callers.audience, AgentAudience: c.options.callers.agentAudience, AgentAccount: c.options.callers.agentUser,
		SetProblems: func(found []problem.Problem) { c.pipeline.SetProblems("credentials", found) },
		Log:         log, Registry: c.registry,
	}
	if config != nil {
		client, err := kube.NewClient(config)
		if err != nil {
			return nil, err
		}
		options.Tokens, options.Rights = client.AuthenticationV1().TokenReviews(), client.AuthorizationV1().SubjectAccessReviews()
	}
	return auth.New(options), nil
}

// accessService returns what agents ask about who calls them and how they serve.
func (c *calculator) accessService(callers *auth.Authenticator) *auth.Service {
	service := &auth.Service{Authenticator: callers}
	if c.trust != nil && c.trust.Own {
		service.Sign = c.trust.Sign
	}
	return service
}

// gate returns what stands before the RPCs of --listen. Without TLS nobody can
// show anything that others could not listen to, so everybody who reaches the
// address is taken for an operator.
func (o *options) gate(a *auth.Authenticator) *access.Gate {
	if o.plaintext() {
		return a.Local()
	}
	return a.Gate()
}
