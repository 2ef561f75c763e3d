// SPDX-License-Identifier: Apache-2.0

package command

import (
	"crypto/tls"
	"errors"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/millrace-project/millrace/services/calculator/internal/trust"
)

// ofCluster tells that this calculator is one of those of a cluster, and that
// agents can reach it.
func (o *options) ofCluster() bool {
	return o.source == "kube" && o.listen != "" && o.trust.Namespace != ""
}

// ownAuthority tells that the certificate comes from the calculators' own
// authority.
func (o *options) ownAuthority() bool {
	return o.ofCluster() && o.trust.Secret != "" && o.tls.CertFile == "" && o.tls.KeyFile == "" && !o.tls.Insecure
}

// announcement names the ConfigMap by which agents are told of calculators,
// which the source reads too; it has no name if there is none.
func (o *options) announcement() types.NamespacedName {
	if !o.ofCluster() || o.trust.ConfigMap == "" {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: o.trust.Namespace, Name: o.trust.ConfigMap}
}

// certificate is what is shown to agents. Flags are read before there is
// anybody who has it.
type certificate struct{ keeper *trust.Keeper }

func (c *certificate) get() (*tls.Certificate, error) {
	if c.keeper == nil {
		return nil, errors.New("the calculator has not started yet")
	}
	return c.keeper.Certificate()
}

// keepTrust makes the keeper of what agents find and trust calculators by, if
// there is to be one.
func (c *calculator) keepTrust(config *rest.Config, log *zap.Logger) error {
	o := c.options
	if o.announcement().Name == "" && !o.ownAuthority() {
		return nil
	}
	var err error
	c.trust, err = trust.New(trust.Options{
		Flags: &o.trust, Own: o.ownAuthority(), Listen: o.listen, Serving: o.tls.Serving,
		Config: config, SetProblems: c.pipeline.SetProblems, Log: log, Registry: c.registry,
	})
	o.certificate.keeper = c.trust
	return err
}
