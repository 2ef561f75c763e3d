// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/millrace-project/millrace/services/calculator/internal/trust/authority"
)

// Flags are the flags of what agents find and trust calculators by.
type Flags struct {
	// Namespace is where Secret, ConfigMap and the calculators' pods are; empty if
	// this is no pod and none is given, and then neither is used.
	Namespace string
	// Secret and ConfigMap are names; empty for none.
	Secret, ConfigMap string
	// Selector finds the calculators' pods.
	Selector string
	// AuthorityFile has what agents are to trust where the certificate comes from
	// files.
	AuthorityFile string
	// Policy is how long things take.
	Policy authority.Policy
}

// namespaceFile is where every pod with a service account finds its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Register adds the flags.
func (f *Flags) Register(flags *pflag.FlagSet) {
	namespace, _ := os.ReadFile(namespaceFile) // only pods have it
	flags.StringVar(&f.Namespace, "namespace", strings.TrimSpace(string(namespace)), "namespace of the calculators, their Secret and their ConfigMap (default the pod's); without one neither is used")
	flags.StringVar(&f.Secret, "ca-secret", "millrace-ca", "name of the Secret in which calculators keep their certificate authority; they make it. Used without --tls-cert and --insecure; empty for none")
	flags.DurationVar(&f.Policy.Lifetime, "ca-lifetime", 365*24*time.Hour, "how long a new certificate authority is valid; it is replaced when a third of that is left")
	flags.DurationVar(&f.Policy.Announce, "ca-announce-time", 24*time.Hour, "how long a new certificate authority is announced to agents before it is used, and an old one after")
	flags.StringVar(&f.ConfigMap, "calculators-configmap", "millrace-calculators", "name of the ConfigMap in which calculators announce their addresses and certificate authority; they make it. Empty for none")
	flags.StringVar(&f.Selector, "calculator-selector", "app.kubernetes.io/name=millrace-calculator", "labels of the calculators' pods")
	flags.StringVar(&f.AuthorityFile, "tls-ca", "", "file of the CA certificates to announce to agents, PEM, read again when it changes; with --tls-cert")
}

// Check tells what is wrong with the values. files tells that the certificate
// comes from files.
func (f *Flags) Check(files bool) error {
	if _, err := labels.Parse(f.Selector); err != nil || f.Selector == "" {
		return fmt.Errorf("--calculator-selector: %q is no selector of labels: %w", f.Selector, err)
	}
	if f.Policy.Lifetime < time.Minute {
		return fmt.Errorf("--ca-lifetime: %v must be at least a minute", f.Policy.Lifetime)
	}
	if f.Policy.Announce < 0 || f.Policy.Announce > f.Policy.Lifetime/3 {
		return fmt.Errorf("--ca-announce-time: %v must be between 0 and a third of --ca-lifetime, %v: a rotation begins when that is left",
			f.Policy.Announce, f.Policy.Lifetime/3)
	}
	if f.AuthorityFile == "" {
		return nil
	}
	if !files {
		return fmt.Errorf("--tls-ca is for a certificate from --tls-cert; calculators announce their own authority by themselves")
	}
	if _, err := readAuthorities(f.AuthorityFile); err != nil {
		return fmt.Errorf("--tls-ca: %w", err)
	}
	return nil
}
