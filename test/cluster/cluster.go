// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sync/errgroup"
)

// Proxies that a cluster can have.
const (
	Millrace = "millrace"
	NFTables = "nftables"
	IPTables = "iptables"
)

// Kinds of CNI configuration.
const (
	PTP    = "ptp"
	Bridge = "bridge"
)

// Options say what cluster to start. The zero value is one of three nodes with
// Millrace, IPv4 and ptp.
type Options struct {
	// Name tells clusters of one machine apart; "millrace" if empty.
	Name string
	// Nodes is their number; default 3.
	Nodes int
	// Family is IPv4, IPv6 or Dual; default IPv4.
	Family Family
	// CNI is PTP or Bridge; default PTP.
	CNI string
	// Proxy is what forwards the traffic of services: Millrace, or kube-proxy
	// in the mode NFTables or IPTables. Default Millrace.
	Proxy string
	// Source is the root of the repository, whose deploy/ is installed; the one
	// that the working directory is in if empty.
	Source string
	// Progress is told what is being done; nobody if nil.
	Progress io.Writer `json:"-"`
}

// Cluster is a cluster that was started, by this process or another.
type Cluster struct {
	opts  Options
	nodes []*Node
	began time.Time
	took  time.Duration
	// port is where the API server is reached on the machine's loopback.
	port uint16
}

// defaultName is a cluster's that was given none.
const defaultName = "millrace"

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$`)

// complete fills in defaults and checks the rest.
func (o *Options) complete() error {
	if o.Name == "" {
		o.Name = defaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Family == "" {
		o.Family = IPv4
	}
	if o.CNI == "" {
		o.CNI = PTP
	}
	if o.Proxy == "" {
		o.Proxy = Millrace
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case !validName.MatchString(o.Name):
		return fmt.Errorf("name of the cluster: %q is not allowed; allowed are up to 20 lower case letters, digits and dashes", o.Name)
	case o.Nodes < 1 || o.Nodes > 9:
		return fmt.Errorf("number of nodes: %d is not allowed; allowed are 1 to 9", o.Nodes)
	case o.Family != IPv4 && o.Family != IPv6 && o.Family != Dual:
		return fmt.Errorf("FAMILY: %q is not known; allowed are %s, %s and %s", o.Family, IPv4, IPv6, Dual)
	case o.CNI != PTP && o.CNI != Bridge:
		return fmt.Errorf("CNI: %q is not known; allowed are %s and %s", o.CNI, PTP, Bridge)
	case o.Proxy != Millrace && o.Proxy != NFTables && o.Proxy != IPTables:
		return fmt.Errorf("PROXY: %q is not known; allowed are %s, %s and %s", o.Proxy, Millrace, NFTables, IPTables)
	}
	if o.Source == "" {
		dir, err := repository()
		if err != nil {
			return err
		}
		o.Source = dir
	}
	return nil
}

// Start removes what there is of a cluster of that name, starts a new one, and
// returns when every node is ready and every pod runs.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("clusters need root")
	}
	if err := Remove(ctx, opts.Name); err != nil {
		return nil, fmt.Errorf("removing an earlier cluster: %w", err)
	}
	c := &Cluster{opts: opts, began: time.Now()}
	for i := range opts.Nodes {
		c.nodes = append(c.nodes, newNode(c, i+1))
	}
	if err := c.start(ctx); err != nil {
		return c, err
	}
	c.took = time.Since(c.began)
	return c, c.save()
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.makeDir(); err != nil {
		return err
	}
	if err := c.save(); err != nil {
		return err
	}
	var images []image
	built, buildCtx := errgroup.WithContext(ctx)
	built.Go(func() (err error) {
		images, err = c.buildImages(buildCtx)
		return err
	})
	if err := errors.Join(c.startMachines(ctx), built.Wait()); err != nil {
		return err
	}
	if err := c.importImages(ctx, images); err != nil {
		return err
	}
	c.say("images are imported")
	if c.opts.Proxy == Millrace {
		if err := c.installMillrace(ctx); err != nil {
			return err
		}
	}
	if err := c.installDNS(ctx); err != nil {
		return err
	}
	if err := c.WaitReady(ctx); err != nil {
		return err
	}
	c.say("every node is ready and every pod runs")
	return nil
}

// startMachines starts the control plane and the nodes.
func (c *Cluster) startMachines(ctx context.Context) error {
	var store string
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		store, err = c.imageStore(groupCtx)
		return err
	})
	group.Go(func() error {
		if err := c.makeNetwork(groupCtx); err != nil {
			return err
		}
		if err := c.startControlPlane(groupCtx); err != nil {
			return err
		}
		c.say("control plane is ready")
		return nil
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if err := c.startNodes(ctx, store); err != nil {
		return err
	}
	c.say("nodes run")
	return nil
}

// say tells what was reached and when.
func (c *Cluster) say(format string, args ...any) {
	fmt.Fprintf(c.opts.Progress, "%5.1f s  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}

// state is what another process needs to know of a cluster.
type state struct {
	Options Options
	Port    uint16
	// Took is how long the start took; zero if it did not end.
	Took time.Duration
}

func (c *Cluster) save() error {
	data, err := json.MarshalIndent(state{Options: c.opts, Port: c.port, Took: c.took}, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.Dir(), "state.json"), data, 0o600); err != nil {
		return fmt.Errorf("writing the cluster's state: %w", err)
	}
	return nil
}

// Attach returns a cluster that runs, by its name ("" is the default one's).
func Attach(name string) (*Cluster, error) {
	if name == "" {
		name = defaultName
	}
	data, err := os.ReadFile(filepath.Join(directory(name), "state.json"))
	if err != nil {
		return nil, fmt.Errorf("there is no cluster %s: run \"make cluster\": %w", name, err)
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("reading the state of cluster %s: %w", name, err)
	}
	c := &Cluster{opts: s.Options, port: s.Port, took: s.Took, began: time.Now()}
	c.opts.Progress = io.Discard
	for i := range s.Options.Nodes {
		c.nodes = append(c.nodes, newNode(c, i+1))
	}
	return c, nil
}

// Options returns what the cluster was started with, defaults filled in.
func (c *Cluster) Options() Options { return c.opts }

// Nodes returns the nodes in the order of their names.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// StartTook is how long the cluster took to start until every pod ran; zero if
// it did not come that far.
func (c *Cluster) StartTook() time.Duration { return c.took }
