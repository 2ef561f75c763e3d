// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/millrace-project/millrace/agent/internal/discovery"
	"github.com/millrace-project/millrace/agent/internal/transport"
	"github.com/millrace-project/millrace/proto/announcement"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// staticCalculators are the addresses of the command line. The default is for
// agents that have no other.
func (o *options) staticCalculators() []string {
	if o.calculatorsDir != "" && !o.given("calculator") {
		return nil
	}
	return o.calculators
}

// checkCalculators tells what is wrong with how calculators are to be found.
func (o *options) checkCalculators() error {
	if err := discovery.Check(o.calculatorsDir); err != nil {
		return err
	}
	if o.tls.CalculatorName != "" && o.tls.CalculatorCA == "" && o.calculatorsDir == "" {
		return errors.New("--tls-server-name needs --tls-ca or --calculators-dir")
	}
	if _, err := o.tls.Authorities(); err != nil {
		return err
	}
	for _, address := range o.staticCalculators() {
		_, _, err := o.tls.Dial(address, transport.Trust{})
		if errors.Is(err, transport.ErrNoAuthority) && o.calculatorsDir != "" {
			continue // calculators announce it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// makeDiscovery needs the state log.
func (a *agent) makeDiscovery() {
	a.discovery = discovery.New(discovery.Options{
		Static: a.staticCalculators(), Dir: a.calculatorsDir, TLS: &a.tls, Store: a.store, Log: a.log})
	a.metrics.Registry.MustRegister(a.discovery)
}

// tellKnown adds to a status what is known of calculators.
func (a *agent) tellKnown(response *agentv1.GetStatusResponse) {
	known := a.discovery.Look()
	for _, c := range known.Calculators {
		response.Calculators = append(response.Calculators, &agentv1.KnownCalculator{Address: c.Address, Origins: c.Origins})
	}
	for _, c := range known.Authorities {
		response.Authorities = append(response.Authorities, &agentv1.TrustedAuthority{
			Subject: c.Certificate.Subject.String(), Fingerprint: announcement.Fingerprint(c.Certificate),
			ExpireTime: timestamppb.New(c.Certificate.NotAfter), Origins: c.Origins,
		})
	}
	response.Problems = append(response.Problems, known.Problems...)
}
