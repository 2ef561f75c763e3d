// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/tls"
	"errors"

	"go.uber.org/zap"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/services/calculator/internal/trust"
)

// keepsTrust tells that this calculator keeps what agents find and trust
// calculators by: it is one of those of a cluster, and agents can reach it.
func (o *options) keepsTrust() bool {
	return o.source == "kube" && o.listen != "" && o.trust.Namespace != "" && (o.trust.ConfigMap != "" || o.ownAuthority())
}

// ownAuthority tells that the certificate comes from the calculators' own
// authority.
func (o *options) ownAuthority() bool {
	return o.source == "kube" && o.listen != "" && o.trust.Namespace != "" && o.trust.Secret != "" &&
		o.tls.CertFile == "" && o.tls.KeyFile == "" && !o.tls.Insecure
}

// watchesAnnouncement tells that agents are told of calculators by the stream
// too.
func (o *options) watchesAnnouncement() bool { return o.keepsTrust() && o.trust.ConfigMap != "" }

// certificate is what is shown to agents. Flags are read before there is
// anybody who has it.
type certificate struct{ keeper *trust.Keeper }

func (c *certificate) get() (*tls.Certificate, error) {
	if c.keeper == nil {
		return nil, errors.New("the calculator has not started yet")
	}
	return c.keeper.Certificate()
}

// keepTrust makes the keeper, if there is to be one.
func (c *calculator) keepTrust(config *rest.Config, log *zap.Logger) error {
	o := c.options
	if !o.keepsTrust() {
		return nil
	}
	var err error
	c.trust, err = trust.New(trust.Options{
		Flags: &o.trust, Own: o.ownAuthority(), Listen: o.listen, CertFile: o.tls.CertFile, KeyFile: o.tls.KeyFile,
		Config: config, SetProblems: c.pipeline.SetProblems, Log: log, Registry: c.registry,
	})
	o.certificate.keeper = c.trust
	return err
}
