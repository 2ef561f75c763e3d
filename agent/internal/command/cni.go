// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/millrace-project/millrace/agent/internal/cniinstall"
	"github.com/millrace-project/millrace/agent/internal/cniplugin"
	"github.com/millrace-project/millrace/agent/internal/endpoints"
	"github.com/millrace-project/millrace/agent/internal/endpointserver"
)

// cni are the flags about the CNI plugin.
type cni struct {
	binDir, confDir, binary string
	addTimeout              time.Duration
}

// registerPaths adds those that say where it is installed.
func (c *cni) registerPaths(flags *pflag.FlagSet) {
	flags.StringVar(&c.binDir, "cni-bin-dir", "", "directory in which the container runtime finds CNI plugins, /opt/cni/bin on most nodes; empty to leave it alone")
	flags.StringVar(&c.confDir, "cni-conf-dir", "", "directory in which it finds CNI configurations, /etc/cni/net.d on most nodes; empty to leave it alone")
}

func (c *cni) register(flags *pflag.FlagSet) {
	c.registerPaths(flags)
	flags.StringVar(&c.binary, "cni-binary", "", "file of the CNI plugin to install (default millrace-cni beside this program)")
	flags.DurationVar(&c.addTimeout, "cni-add-timeout", cniplugin.DefaultAddTimeout, "how long a new pod waits for this agent, if it does not answer, before the container runtime is told to try again later")
}

func (c *cni) checkPaths() error {
	return absoluteOrEmpty(map[string]string{"--cni-bin-dir": c.binDir, "--cni-conf-dir": c.confDir, "--cni-binary": c.binary})
}

// check tells what is wrong with the flags; socket is the agent's.
func (c *cni) check(socket string) error {
	if err := c.checkPaths(); err != nil {
		return err
	}
	switch {
	case c.addTimeout < time.Second || c.addTimeout > time.Minute:
		return fmt.Errorf("--cni-add-timeout: %v must be from 1s to 1m", c.addTimeout)
	case c.confDir != "" && socket == "":
		return fmt.Errorf("--cni-conf-dir: the CNI plugin needs --socket to reach this agent")
	}
	return nil
}

// openEndpoints reads what the CNI plugin told an earlier agent of this boot.
func (a *agent) openEndpoints(boot string) {
	registry, failures := endpoints.Open(a.endpointsDir(), boot)
	for _, err := range failures {
		a.log.Error("read what the CNI plugin told", zap.Error(err))
		a.problem("a pod that the CNI plugin told of is forgotten: %v", err)
	}
	known := registry.Known()
	a.log.Info("endpoints read", zap.Int("endpoints", len(known.Endpoints)))
	a.registry = registry
}

// makeCNI makes what the CNI plugin talks to, and what installs it.
func (a *agent) makeCNI() {
	a.endpoints = &endpointserver.Server{
		Socket: a.listenUnix, Registry: a.registry, Applier: a.applier, Dataplane: a.plane, Metrics: a.metrics, Log: a.log,
	}
	if a.cni.binDir != "" || a.cni.confDir != "" {
		a.installer = cniinstall.NewInstaller(cniinstall.Options{
			BinDir: a.cni.binDir, ConfDir: a.cni.confDir, Binary: a.pluginFile(), Socket: a.listenUnix, AddTimeout: a.cni.addTimeout,
		}, a.log)
	}
}

// runCNI catches up on what was missed, and keeps the plugin installed, until ctx
// ends.
func (a *agent) runCNI(ctx context.Context) {
	a.endpoints.Missed(ctx)
	if a.installer != nil {
		a.installer.Run(ctx)
	}
}

// devicesGone forgets devices that were deleted.
func (a *agent) devicesGone(ctx context.Context) func(...uint32) {
	return func(indexes ...uint32) {
		a.plane.DevicesGone(indexes...)
		a.endpoints.DevicesGone(ctx, indexes...)
	}
}

// pluginFile is the plugin to install.
func (a *agent) pluginFile() string {
	if a.cni.binary != "" {
		return a.cni.binary
	}
	self, err := os.Executable()
	if err != nil {
		return cniplugin.Type // the installer says that it is not there
	}
	return filepath.Join(filepath.Dir(self), cniplugin.Type)
}

// endpointsDir is where endpoints are kept: in memory if there is a directory for
// that, as they end with the boot, and a disk that hangs must hold up no pod.
// Its name tells whose they are, as that of fallbackLog does.
func (o *options) endpointsDir() string {
	if log := o.fallbackLog(); log != "" {
		name := strings.TrimSuffix(filepath.Base(log), ".log")
		return filepath.Join(filepath.Dir(log), "endpoints"+strings.TrimPrefix(name, "state"))
	}
	return filepath.Join(o.stateDir, "endpoints")
}

// removeCNI takes the plugin off the node again, for cleanup.
func (o *options) removeCNI(out io.Writer) error {
	changed, err := cniinstall.Remove(o.cni.binDir, o.cni.confDir)
	if len(changed) > 0 {
		fmt.Fprintf(out, "removed the CNI plugin: %s\n", strings.Join(changed, ", "))
	}
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}
