// SPDX-License-Identifier: Apache-2.0

package ctl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"
)

const (
	// defaultAgent is where an agent listens unless told otherwise.
	defaultAgent = "unix:///run/millrace/agent.sock"
	envAgent     = "MILLRACE_AGENT"
	envCalc      = "MILLRACE_CALCULATOR"
	// maxMessage allows for a status or a list of nodes of a large cluster,
	// which comes as one message.
	maxMessage = 64 << 20
)

// connectionFlags tell how to reach an agent and a calculator.
type connectionFlags struct {
	agent, calculator      string
	ca, cert, key, tlsName string
	tokenFile              string
	insecure               bool
	timeout                time.Duration
	agentGiven             func() bool
}

func (c *connectionFlags) register(flags *pflag.FlagSet, getenv func(string) string) {
	agent := getenv(envAgent)
	fromEnv := agent != ""
	if agent == "" {
		agent = defaultAgent
	}
	flags.StringVar(&c.agent, "agent", agent, "address of the agent, unix:///path or host:port ($"+envAgent+")")
	flags.StringVar(&c.calculator, "calculator", getenv(envCalc), "address of the calculator, unix:///path or host:port ($"+envCalc+")")
	flags.StringVar(&c.ca, "tls-ca", "", "file of the CA certificates that the server's must come from; turns TLS on")
	flags.StringVar(&c.cert, "tls-cert", "", "file of the certificate to show the server")
	flags.StringVar(&c.key, "tls-key", "", "file of the key of --tls-cert")
	flags.StringVar(&c.tlsName, "tls-server-name", "", "name to expect in the server's certificate (default the host dialled)")
	flags.StringVar(&c.tokenFile, "token-file", "", "file of a service account's token to show the server, as \"kubectl create token\" prints it; needs TLS")
	flags.BoolVar(&c.insecure, "insecure", false, "allow a connection without TLS to another machine")
	flags.DurationVar(&c.timeout, "timeout", 30*time.Second, "give up after this time")
	c.agentGiven = func() bool { return fromEnv || flags.Changed("agent") }
}

// target is a server as messages name it.
type target struct {
	role    string // "agent" or "calculator"
	address string
	timeout time.Duration
}

// session is an open connection with the deadline of the whole command.
type session struct {
	target
	ctx    context.Context
	conn   *grpc.ClientConn
	cancel context.CancelFunc
}

func (s *session) close() {
	s.cancel()
	s.conn.Close() //nolint:errcheck // nothing is left to lose
}

func (s *session) agent() agentv1.AgentServiceClient {
	return agentv1.NewAgentServiceClient(s.conn)
}

func (s *session) calculator() calculatorv1.CalculatorServiceClient {
	return calculatorv1.NewCalculatorServiceClient(s.conn)
}

func (a *App) dialAgent(ctx context.Context) (*session, error) {
	return a.connection.dial(ctx, "agent", a.connection.agent)
}

func (a *App) dialCalculator(ctx context.Context) (*session, error) {
	if a.connection.calculator == "" {
		return nil, usagef("no calculator to ask; give its address with --calculator or %s", envCalc)
	}
	return a.connection.dial(ctx, "calculator", a.connection.calculator)
}

func (c *connectionFlags) dial(ctx context.Context, role, address string) (*session, error) {
	if c.timeout <= 0 {
		return nil, usagef("invalid --timeout %s; allowed is any time above 0", c.timeout)
	}
	creds, err := c.credentials(role, address)
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}
	// A unix socket is reached by those only who need no token.
	if c.tokenFile != "" && !isUnix(address) {
		token, err := readToken(c.tokenFile)
		if err != nil {
			return nil, err
		}
		if creds.Info().SecurityProtocol != "tls" {
			return nil, usagef("--token-file needs TLS (--tls-ca): the token would be sent to the %s at %s in the clear", role, address)
		}
		options = append(options, grpc.WithPerRPCCredentials(token))
	}
	conn, err := grpc.NewClient(grpcTarget(address), options...)
	if err != nil {
		return nil, usagef("invalid address %q of the %s: %v; allowed are unix:///path and host:port", address, role, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	return &session{
		target: target{role: role, address: address, timeout: c.timeout},
		ctx:    ctx, conn: conn, cancel: cancel,
	}, nil
}

// grpcTarget leaves a host and port to the dialer: a name is looked up once,
// with the system's resolver.
func grpcTarget(address string) string {
	if isUnix(address) {
		return address
	}
	return "passthrough:///" + address
}

func isUnix(address string) bool { return strings.HasPrefix(address, "unix:") }

// credentials decides how a connection is protected: by TLS if any --tls flag
// is given, else not at all, and that only where nobody can listen.
func (c *connectionFlags) credentials(role, address string) (credentials.TransportCredentials, error) {
	if isUnix(address) {
		return insecure.NewCredentials(), nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, usagef("invalid address %q of the %s; allowed are unix:///path and host:port", address, role)
	}
	if c.ca != "" || c.cert != "" || c.key != "" || c.tlsName != "" {
		return c.tlsCredentials()
	}
	if !c.insecure && !isLoopback(host) {
		return nil, usagef("the %s at %s is on another machine: give --tls-ca, or --insecure to talk to it in the clear", role, address)
	}
	return insecure.NewCredentials(), nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func (c *connectionFlags) tlsCredentials() (credentials.TransportCredentials, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: c.tlsName}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, fmt.Errorf("reading --tls-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading --tls-ca: %s holds no PEM certificate", c.ca)
		}
	}
	if (c.cert == "") != (c.key == "") {
		return nil, usagef("--tls-cert and --tls-key are allowed only together")
	}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("reading --tls-cert and --tls-key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}
