// SPDX-License-Identifier: Apache-2.0

// Package command is the agent's command line.
package command

import (
	"crypto/sha256"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	"github.com/millrace-project/millrace/agent/internal/transport"
	mbpf "github.com/millrace-project/millrace/bpf"
)

// options are the values of all flags.
type options struct {
	node           string
	calculators    []string
	calculatorsDir string
	given          func(flag string) bool
	bpfFS          string
	cgroupRoot     string
	stateDir       string
	fallbackDir    string
	sysctlDir      string
	listenUnix     string
	listen         string
	metricsListen  string
	tls            transport.TLS
	tokenFile      string
	snatPorts      string
	uplinkExclude  []string
	fastPath       bool
	without        []string
	logLevel       string
	logFormat      string
	sizes          struct{ frontends, backends, routes, embryonic, established, affinity, ids uint32 }
	growth         growth
	cni            cni
}

// register adds the flags that every subcommand has which touches the kernel.
func (o *options) registerPaths(flags *pflag.FlagSet) {
	flags.StringVar(&o.bpfFS, "bpf-dir", "/sys/fs/bpf/millrace", "directory on a BPF filesystem under which everything of this node is pinned")
	flags.StringVar(&o.stateDir, "state-dir", "/var/lib/millrace", "directory for the log of what calculators sent")
	flags.StringVar(&o.sysctlDir, "sysctl-dir", "/proc/sys", "directory of the kernel's settings, writable")
	flags.StringVar(&o.logLevel, "log-level", "info", "least level to log: debug, info, warn or error")
	flags.StringVar(&o.logFormat, "log-format", "json", "json or console")
}

func (o *options) registerFallback(flags *pflag.FlagSet) {
	flags.StringVar(&o.calculatorsDir, "calculators-dir", "", "directory that the calculators' ConfigMap is mounted at, with their addresses and certificate authority; read anew when it changes. With it --calculator has no default")
	flags.StringVar(&o.fallbackDir, "state-fallback-dir", "/run/millrace", "directory in memory for the log while --state-dir cannot be written; a reboot must empty it; empty for none")
}

func (o *options) register(flags *pflag.FlagSet) {
	o.registerPaths(flags)
	host, _ := os.Hostname()
	flags.StringVar(&o.node, "node-name", host, "name of this node in the cluster")
	o.given = flags.Changed
	flags.StringSliceVar(&o.calculators, "calculator", []string{"127.0.0.1:7700"}, "address of a calculator, HOST:PORT or unix:/path; repeat, or separate by commas, for more")
	o.registerFallback(flags)
	flags.StringVar(&o.cgroupRoot, "cgroup-root", "/sys/fs/cgroup", "directory of the cgroup v2 hierarchy below which this node's processes are")
	flags.StringVar(&o.listenUnix, "socket", "/run/millrace/agent.sock", "path of the unix socket to serve on, in plaintext; empty for none")
	flags.StringVar(&o.listen, "listen", "", "HOST:PORT to serve gRPC on too, with TLS, by a certificate that calculators sign unless there is --tls-cert; empty for none")
	flags.StringVar(&o.tokenFile, "token-file", "", "file of the service account's token to show calculators over TLS; read anew for each stream; empty for none")
	flags.StringVar(&o.metricsListen, "metrics-listen", "127.0.0.1:9701", "HOST:PORT to serve /metrics, /healthz and /readyz on; empty for none")
	flags.StringVar(&o.tls.Cert, "tls-cert", "", "file of the certificate to serve with, and to show calculators, PEM; turns TLS on for --listen and --metrics-listen; the latter is plain HTTP without")
	flags.StringVar(&o.tls.Key, "tls-key", "", "file of the key of --tls-cert, PEM")
	flags.StringVar(&o.tls.ClientCA, "tls-client-ca", "", "file of the CA certificates that clients' certificates must come from, PEM")
	flags.StringVar(&o.tls.CalculatorCA, "tls-ca", "", "file of the CA certificates that calculators' must come from, PEM, beside those that calculators announce; turns TLS on towards calculators")
	flags.StringVar(&o.tls.CalculatorName, "tls-server-name", "", "name to expect in a calculator's certificate (default the host dialled; millrace-calculator for those that calculators announce)")
	flags.BoolVar(&o.tls.Insecure, "insecure", false, "allow plaintext beyond unix sockets and loopback")
	flags.StringVar(&o.snatPorts, "snat-ports", "20000-29999", "source ports, FIRST-LAST, of connections whose source is translated")
	flags.StringArrayVar(&o.uplinkExclude, "uplink-exclude", nil, "pattern of names (*, ?, [..]) of devices that are no uplinks; repeat for more")
	flags.BoolVar(&o.fastPath, "fast-path", true, "let established flows within the cluster pass the host's stack by")
	o.registerWithout(flags)
	size := func(p *uint32, name, what string) {
		flags.Uint32Var(p, name, 0, "size of the map of "+what+" when it is created; 0 for the default")
	}
	size(&o.sizes.frontends, "max-frontends", "frontends, per family")
	size(&o.sizes.backends, "max-backends", "backends, per family")
	size(&o.sizes.routes, "max-routes", "routes, per family")
	size(&o.sizes.embryonic, "max-embryonic", "flows being opened, per family")
	size(&o.sizes.established, "max-established", "established flows, per family")
	size(&o.sizes.affinity, "max-affinity", "clients that keep a backend, per family")
	size(&o.sizes.ids, "max-ids", "numbers of service ports")
	o.growth.register(flags)
	o.cni.register(flags)
}

// settings are checked options.
type settings struct {
	*options
	snat bpf.PortRange
}

// parsePorts reads "FIRST-LAST".
func parsePorts(text string) (bpf.PortRange, error) {
	first, last, ok := strings.Cut(text, "-")
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if !ok || errA != nil || errB != nil || a < 1 || a > b {
		return bpf.PortRange{}, fmt.Errorf("%q must be FIRST-LAST with 1 <= FIRST <= LAST <= %d", text, math.MaxUint16)
	}
	return bpf.PortRange{First: uint16(a), Last: uint16(b)}, nil
}

// localPorts is where the kernel says which ports it picks for clients.
const localPorts = "/proc/sys/net/ipv4/ip_local_port_range"

// checkLocalPorts refuses source ports that the kernel picks too.
func checkLocalPorts(snat bpf.PortRange, content string) error {
	fields := strings.Fields(content)
	if len(fields) != 2 {
		return fmt.Errorf("%s holds %q, not two ports", localPorts, strings.TrimSpace(content))
	}
	local, err := parsePorts(fields[0] + "-" + fields[1])
	if err != nil {
		return fmt.Errorf("%s: %w", localPorts, err)
	}
	if snat.Overlaps(local) {
		return fmt.Errorf("--snat-ports: %s overlaps the node's local ports %s (%s); choose ports outside of them", snat, local, localPorts)
	}
	return nil
}

func (o *options) checkLog() error {
	if _, err := zapcore.ParseLevel(o.logLevel); err != nil {
		return fmt.Errorf("--log-level: %q must be debug, info, warn or error", o.logLevel)
	}
	if o.logFormat != "json" && o.logFormat != "console" {
		return fmt.Errorf("--log-format: %q must be json or console", o.logFormat)
	}
	return nil
}

// absoluteOrEmpty demands it of the values of flags that are paths.
func absoluteOrEmpty(paths map[string]string) error {
	for flag, path := range paths {
		if path != "" && !filepath.IsAbs(path) {
			return fmt.Errorf("%s: %q must be an absolute path or empty", flag, path)
		}
	}
	return nil
}

// check makes settings of the options, or tells what is allowed instead.
func (o *options) check() (*settings, error) {
	if err := o.checkLog(); err != nil {
		return nil, err
	}
	s := &settings{options: o}
	switch {
	case o.node == "" || strings.ContainsAny(o.node, "/ \t\n"):
		return nil, fmt.Errorf("--node-name: %q must be the name of a node", o.node)
	case len(o.calculators) == 0 && o.calculatorsDir == "":
		return nil, fmt.Errorf("--calculator: at least one address, HOST:PORT or unix:/path, is needed")
	}
	for flag, path := range map[string]string{
		"--bpf-dir": o.bpfFS, "--cgroup-root": o.cgroupRoot, "--state-dir": o.stateDir,
	} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s: %q must be an absolute path", flag, path)
		}
	}
	err := absoluteOrEmpty(map[string]string{
		"--state-fallback-dir": o.fallbackDir, "--socket": o.listenUnix, "--token-file": o.tokenFile,
	})
	if err != nil {
		return nil, err
	}
	if err := o.leaveUnused(&mbpf.Options{}); err != nil {
		return nil, err
	}
	if err := o.tls.Check(); err != nil {
		return nil, err
	}
	if err := o.growth.check(); err != nil {
		return nil, err
	}
	if err := o.cni.check(o.listenUnix); err != nil {
		return nil, err
	}
	if err := o.checkCalculators(); err != nil {
		return nil, err
	}
	for flag, address := range map[string]string{"--listen": o.listen, "--metrics-listen": o.metricsListen} {
		if address == "" {
			continue
		}
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
			return nil, fmt.Errorf("%s: %q must be HOST:PORT or empty", flag, address)
		}
	}
	// --metrics-listen is in plain HTTP without a certificate, as calculators' is.
	if err := o.checkListen(); err != nil {
		return nil, err
	}
	if _, err := interfaces.NewClassifier(o.uplinkExclude); err != nil {
		return nil, fmt.Errorf("--uplink-exclude: %w", err)
	}
	if s.snat, err = parsePorts(o.snatPorts); err != nil {
		return nil, fmt.Errorf("--snat-ports: %w", err)
	}
	content, err := os.ReadFile(localPorts)
	if err != nil {
		return nil, fmt.Errorf("--snat-ports: read the node's local ports: %w", err)
	}
	if err := checkLocalPorts(s.snat, string(content)); err != nil {
		return nil, err
	}
	return s, nil
}

// fallbackLog is the file for the log while the state directory cannot be
// written. Its name tells whose it is: several agents may share the directory,
// and none may take another's log for its own.
func (o *options) fallbackLog() string {
	if o.fallbackDir == "" {
		return ""
	}
	name := sha256.Sum256([]byte(filepath.Clean(o.stateDir)))
	return filepath.Join(o.fallbackDir, fmt.Sprintf("state-%x.log", name[:6]))
}

// mapOptions returns how to open the dataplane.
func (o *options) mapOptions() mbpf.Options {
	return mbpf.Options{
		PinPath:        o.bpfFS,
		MaxFrontends:   o.sizes.frontends,
		MaxBackends:    o.sizes.backends,
		MaxRoutes:      o.sizes.routes,
		MaxEmbryonic:   o.sizes.embryonic,
		MaxEstablished: o.sizes.established,
		MaxAffinity:    o.sizes.affinity,
		MaxIDs:         o.sizes.ids,
	}
}

// logger returns the logger that the flags ask for, on stderr.
func (o *options) logger() (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(o.logLevel)
	if err != nil {
		return nil, err
	}
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(level)
	config.Encoding = o.logFormat
	config.DisableStacktrace = true
	config.DisableCaller = true
	config.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	return config.Build()
}
