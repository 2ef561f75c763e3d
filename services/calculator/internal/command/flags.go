// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/credentials"

	"github.com/millrace-project/millrace/services/calculator/internal/trust"
	"github.com/millrace-project/millrace/services/internal/transport"
)

// options are the values of the flags.
type options struct {
	source     string
	manifests  string
	kubeconfig string

	listen        string
	socket        string
	metricsListen string
	pprof         bool
	tls           transport.ServerFlags
	trust         trust.Flags

	logLevel  string
	logFormat string

	maxConnectionAge      time.Duration
	maxConnectionAgeGrace time.Duration
	drainTime             time.Duration
	drainGrace            time.Duration
	joinLimit             int

	certificate certificate                      // of the calculators' own authority
	level       zapcore.Level                    // of logLevel
	credentials credentials.TransportCredentials // of listen and tls
	callers     callerFlags
}

// What may be given to --source and --log-format.
var (
	sources    = []string{"kube", "dir"}
	logFormats = []string{"json", "console"}
)

func (o *options) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.source, "source", "kube", "where to read objects: kube (an API server) or dir (a directory of manifests)")
	flags.StringVar(&o.manifests, "manifests", "", "directory of manifests (*.yaml, *.yml, *.json), for --source=dir")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file, for --source=kube; without it, as pods reach the API server")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:7700", "HOST:PORT to serve gRPC on; empty for none")
	flags.StringVar(&o.socket, "socket", "", "path of a unix socket to serve gRPC on too, in plaintext")
	flags.StringVar(&o.metricsListen, "metrics-listen", "127.0.0.1:9700", "HOST:PORT to serve /metrics, /healthz and /readyz on; empty for none")
	flags.BoolVar(&o.pprof, "pprof", false, "serve /debug/pprof on --metrics-listen")
	o.tls.Register(flags)
	o.trust.Register(flags)
	o.callers.register(flags)
	flags.StringVar(&o.logLevel, "log-level", "info", "least level to log: debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "json", "json or console")
	flags.DurationVar(&o.maxConnectionAge, "max-connection-age", time.Hour, "ask an agent to connect anew, perhaps to another calculator, after about this time; 0 for never")
	flags.DurationVar(&o.maxConnectionAgeGrace, "max-connection-age-grace", 30*time.Second, "close a connection this long after its agent was asked to connect anew")
	flags.IntVar(&o.joinLimit, "join-limit", 32, "bring at most this many agents up to date at a time; the others wait in order")
	flags.DurationVar(&o.drainTime, "drain-time", 5*time.Second, "when stopping, spread over this time the requests to agents to go elsewhere")
	flags.DurationVar(&o.drainGrace, "drain-grace", 2*time.Second, "when stopping, wait this long for the last agents to go")
}

// validate tells, in one line, what is wrong with the values.
func (o *options) validate(cmd *cobra.Command) error {
	if err := oneOf("--source", o.source, sources); err != nil {
		return err
	}
	if err := oneOf("--log-format", o.logFormat, logFormats); err != nil {
		return err
	}
	if err := oneOf("--log-level", o.logLevel, []string{"debug", "info", "warn", "error"}); err != nil {
		return err
	}
	if err := o.level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	switch o.source {
	case "dir":
		if cmd.Flags().Changed("kubeconfig") {
			return fmt.Errorf("--kubeconfig is for --source=kube, not for --source=dir")
		}
		if o.manifests == "" {
			return fmt.Errorf("--manifests must name a directory with --source=dir")
		}
		if info, err := os.Stat(o.manifests); err != nil {
			return fmt.Errorf("--manifests: %w", err)
		} else if !info.IsDir() {
			return fmt.Errorf("--manifests: %s is not a directory", o.manifests)
		}
	case "kube":
		if cmd.Flags().Changed("manifests") {
			return fmt.Errorf("--manifests is for --source=dir, not for --source=kube")
		}
	}
	if o.listen == "" && o.socket == "" {
		return fmt.Errorf("--listen and --socket are both empty, one is needed to serve agents")
	}
	if err := o.trust.Check(o.tls.CertFile != ""); err != nil {
		return err
	}
	if o.ownAuthority() {
		o.tls.Certificate = o.certificate.get
	}
	if o.listen != "" {
		var err error
		if o.credentials, err = o.tls.Credentials(o.listen); err != nil {
			return err
		}
		if err := o.callers.check(o); err != nil {
			return err
		}
	}
	if o.metricsListen != "" {
		if _, _, err := transport.CheckAddress("--metrics-listen", o.metricsListen); err != nil {
			return err
		}
	}
	if o.joinLimit < 1 {
		return fmt.Errorf("--join-limit: %d must be at least 1", o.joinLimit)
	}
	for name, value := range map[string]time.Duration{
		"--max-connection-age": o.maxConnectionAge, "--max-connection-age-grace": o.maxConnectionAgeGrace,
		"--drain-time": o.drainTime, "--drain-grace": o.drainGrace,
	} {
		if value < 0 {
			return fmt.Errorf("%s: %v must not be negative", name, value)
		}
	}
	return nil
}

func oneOf(flag, value string, allowed []string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s: %q must be one of %s", flag, value, strings.Join(allowed, ", "))
}
