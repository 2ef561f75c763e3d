// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/millrace-project/millrace/test/probe"
)

// Prober makes traffic on one host. Its calls are those of probe.Client.
type Prober struct {
	*probe.Client
	// Host it is on.
	Host *Host
	// Process that does the work.
	Process *Process
}

// Probe returns the prober of a host, starting it at the first call.
// Programs on the node's cgroup see its sockets.
func (c *Cluster) Probe(host *Host, binaries Binaries) (*Prober, error) {
	return c.probe(host, binaries, "")
}

// ProbeBypass returns the prober of a host whose sockets no program on a
// node's cgroup sees: its traffic is for the programs on devices alone.
func (c *Cluster) ProbeBypass(host *Host, binaries Binaries) (*Prober, error) {
	return c.probe(host, binaries, "-bypass")
}

func (c *Cluster) probe(host *Host, binaries Binaries, suffix string) (*Prober, error) {
	name := host.Name + suffix
	c.mu.Lock()
	prober := c.probes[name]
	c.mu.Unlock()
	if prober != nil {
		return prober, prober.Process.Running()
	}
	socket := c.probeSocket(name)
	start := host.Start
	if suffix != "" {
		start = host.StartBypass
	}
	process, err := start("probe-"+name, binaries.Probe, "-name", host.Name, "-control", socket)
	if err != nil {
		return nil, err
	}
	if err := waitSocket(process, socket); err != nil {
		return nil, err
	}
	prober = &Prober{Client: probe.NewClient(socket), Host: host, Process: process}
	c.mu.Lock()
	c.probes[name] = prober
	c.mu.Unlock()
	return prober, nil
}

func (c *Cluster) probeSocket(name string) string { return filepath.Join(c.Dir, "probe", name+".sock") }

// waitSocket waits until a process listens on a unix socket.
func waitSocket(process *Process, socket string) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	timeout := time.AfterFunc(time.Minute, func() { cancel(context.DeadlineExceeded) })
	defer timeout.Stop()
	go func() { // No use in waiting for one that has ended.
		select {
		case <-process.Done():
			cancel(process.Running())
		case <-ctx.Done():
		}
	}()
	err := Eventually(ctx, func() error {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		return fmt.Errorf("wait for %s to listen: %w", process.Name, err)
	}
	return process.Running()
}

// Serve starts echo servers for TCP and UDP on a port of both the host's
// addresses.
func (p *Prober) Serve(port uint16) error {
	for _, network := range []string{probe.TCP, probe.UDP} {
		for _, addr := range []netip.Addr{p.Host.IPv4, p.Host.IPv6} {
			if _, err := p.Listen(network, netip.AddrPortFrom(addr, port)); err != nil {
				return fmt.Errorf("serve %s on %s: %w", network, p.Host.Name, err)
			}
		}
	}
	return nil
}
