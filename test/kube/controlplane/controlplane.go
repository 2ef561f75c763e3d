// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real kube-apiserver with a real etcd for tests:
// on loopback, or inside a network namespace of the test. It has no controller
// manager, scheduler or kubelet, so objects stay as the test wrote them.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/millrace-project/millrace/test/certs"
)

// Options say where and how a control plane runs. The zero value is one on
// loopback with its state in a temporary directory.
type Options struct {
	// Dir holds state, certificates and logs; a new temporary directory,
	// removed by Stop, if empty.
	Dir string
	// NetNS is the path of the network namespace to run in, the caller's own
	// if empty. Its loopback device must be up.
	NetNS string
	// Address is where the API server listens; 127.0.0.1 if unset.
	Address netip.Addr
	// Port is the API server's port, a free one if zero.
	Port uint16
	// ServiceCIDRs are the ranges of cluster IPs, the primary family's first.
	// Default: 10.96.0.0/12 and fd00:10:96::/112.
	ServiceCIDRs []netip.Prefix
	// Admission lists admission plugins to enable besides Kubernetes' default
	// ones.
	Admission []string
}

// ControlPlane is a running API server with its etcd.
type ControlPlane struct {
	opts      Options
	dir       string
	temporary bool
	ca        *certs.Authority
	etcdPort  uint16
	peerPort  uint16

	mu        sync.Mutex
	etcd      *process
	apiserver *process
	admin     kubernetes.Interface
}

// Start runs etcd and kube-apiserver and returns when the API server is ready.
func Start(ctx context.Context, opts Options) (*ControlPlane, error) {
	c := &ControlPlane{opts: opts}
	if err := c.prepare(); err != nil {
		c.removeDir()
		return nil, err
	}
	err := c.StartEtcd(ctx)
	if err == nil {
		err = c.StartAPIServer(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// prepare fills in the defaults and writes certificates and keys.
func (c *ControlPlane) prepare() error {
	if !c.opts.Address.IsValid() {
		c.opts.Address = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if len(c.opts.ServiceCIDRs) == 0 {
		c.opts.ServiceCIDRs = []netip.Prefix{
			netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112"),
		}
	}
	c.dir = c.opts.Dir
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "millrace-kube-")
		if err != nil {
			return fmt.Errorf("making a directory: %w", err)
		}
		c.dir, c.temporary = dir, true
	}
	if err := os.MkdirAll(c.pki(), 0o700); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	var err error
	if c.opts.Port == 0 {
		if c.opts.Port, err = FreePort(c.opts.NetNS); err != nil {
			return err
		}
	}
	if c.etcdPort, err = FreePort(c.opts.NetNS); err != nil {
		return err
	}
	if c.peerPort, err = FreePort(c.opts.NetNS); err != nil {
		return err
	}
	c.ca, err = WritePKI(c.pki(), "millrace-test-ca", c.opts.ServiceCIDRs, c.opts.Address)
	return err
}

func (c *ControlPlane) pki() string { return filepath.Join(c.dir, "pki") }

// StartAPIServer starts the API server and returns when it is ready. Only
// after StopAPIServer is there a reason to call it.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	program, err := Binary("kube-apiserver")
	if err != nil {
		return err
	}
	args := append(APIServerArgs(c.pki(), c.opts.ServiceCIDRs),
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.etcdPort),
		"--bind-address="+c.opts.Address.String(),
		"--secure-port="+strconv.Itoa(int(c.opts.Port)),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--authorization-mode=RBAC",
		// Nobody makes the default service accounts of namespaces here, and
		// nobody removes the taint of nodes that are not ready.
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition,DefaultTolerationSeconds,DefaultStorageClass",
		// The tests write what they need of it themselves.
		"--endpoint-reconciler-type=none",
		// Flow control would measure the API server instead of what is tested.
		"--enable-priority-and-fairness=false",
		"--max-requests-inflight=0", "--max-mutating-requests-inflight=0",
		"--event-ttl=10m",
	)
	if c.opts.Address.IsLoopback() {
		// Nothing but a plain address is accepted for it, though nobody is
		// told it when the endpoint reconciler is off.
		args = append(args, "--advertise-address=192.0.2.1")
	}
	if len(c.opts.Admission) > 0 {
		args = append(args, "--enable-admission-plugins="+strings.Join(c.opts.Admission, ","))
	}
	p, err := startProcess(c.opts.NetNS, c.dir, program, args...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.apiserver = p
	c.mu.Unlock()
	admin, err := c.Clientset()
	if err != nil {
		return err
	}
	return p.waitReady(ctx, func(ctx context.Context) error { return Ready(ctx, admin) })
}

// StopAPIServer ends the API server and waits until it is gone; etcd and what
// it holds stay. Open watches would keep the API server for a minute, so that
// it is killed after a moment.
func (c *ControlPlane) StopAPIServer() error {
	c.mu.Lock()
	p := c.apiserver
	c.mu.Unlock()
	return p.stop(2 * time.Second)
}

// Stop ends the API server, then etcd: in the other order the API server
// would spend its shutdown on retries. A nil one was not started.
func (c *ControlPlane) Stop() error {
	if c == nil {
		return nil
	}
	err := errors.Join(c.StopAPIServer(), c.stopEtcd())
	c.removeDir()
	return err
}

func (c *ControlPlane) removeDir() {
	if c.temporary {
		os.RemoveAll(c.dir)
	}
}

// Dir returns the directory of state and logs.
func (c *ControlPlane) Dir() string { return c.dir }

// PIDs returns the processes by name, for reading their use of memory.
func (c *ControlPlane) PIDs() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]int{"etcd": c.etcd.PID(), "kube-apiserver": c.apiserver.PID()}
}

func (c *ControlPlane) endpoint() string {
	return netip.AddrPortFrom(c.opts.Address, c.opts.Port).String()
}
