// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// memberName is the name of the only member of etcd.
const memberName = "millrace"

func (c *ControlPlane) etcdURL() string  { return fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort) }
func (c *ControlPlane) peerURL() string  { return fmt.Sprintf("http://127.0.0.1:%d", c.peerPort) }
func (c *ControlPlane) etcdData() string { return filepath.Join(c.dir, "etcd") }

// etcdClient makes requests in the control plane's namespace.
func (c *ControlPlane) etcdClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dialNetNS(c.opts.NetNS), DisableKeepAlives: true}}
}

// StartEtcd starts etcd and returns when it answers. Only after KillEtcd is
// there a reason to call it.
func (c *ControlPlane) StartEtcd(ctx context.Context) error {
	program, err := Binary("etcd")
	if err != nil {
		return err
	}
	p, err := startProcess(c.opts.NetNS, c.dir, program,
		"--name="+memberName, "--data-dir="+c.etcdData(),
		"--listen-client-urls="+c.etcdURL(), "--advertise-client-urls="+c.etcdURL(),
		"--listen-peer-urls="+c.peerURL(), "--initial-advertise-peer-urls="+c.peerURL(),
		"--initial-cluster="+memberName+"="+c.peerURL(),
		"--unsafe-no-fsync", "--quota-backend-bytes=2147483648", "--log-level=warn",
	)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.etcd = p
	c.mu.Unlock()
	client := c.etcdClient()
	return p.waitReady(ctx, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.etcdURL()+"/health", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("health is %s", resp.Status)
		}
		return nil
	})
}

// KillEtcd ends etcd without notice, as a crash does. The API server stays and
// can neither read nor write.
func (c *ControlPlane) KillEtcd() error {
	c.mu.Lock()
	p := c.etcd
	c.mu.Unlock()
	return p.kill()
}

func (c *ControlPlane) stopEtcd() error {
	c.mu.Lock()
	p := c.etcd
	c.mu.Unlock()
	return p.stop(10 * time.Second)
}

// SaveEtcd writes a snapshot of etcd to a file, as etcdctl snapshot save does.
func (c *ControlPlane) SaveEtcd(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.etcdURL()+"/v3/maintenance/snapshot", strings.NewReader("{}"))
	if err != nil {
		return fmt.Errorf("asking etcd for a snapshot: %w", err)
	}
	resp, err := c.etcdClient().Do(req)
	if err != nil {
		return fmt.Errorf("asking etcd for a snapshot: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("asking etcd for a snapshot: %s", resp.Status)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("writing a snapshot of etcd: %w", err)
	}
	defer file.Close()
	for decoder := json.NewDecoder(bufio.NewReader(resp.Body)); ; {
		var part struct {
			Result struct {
				Blob []byte `json:"blob"`
			} `json:"result"`
			Error json.RawMessage `json:"error"`
		}
		switch err := decoder.Decode(&part); {
		case errors.Is(err, io.EOF):
			return file.Close()
		case err != nil:
			return fmt.Errorf("reading a snapshot of etcd: %w", err)
		case part.Error != nil:
			return fmt.Errorf("reading a snapshot of etcd: %s", part.Error)
		}
		if _, err := file.Write(part.Result.Blob); err != nil {
			return fmt.Errorf("writing a snapshot of etcd: %w", err)
		}
	}
}

// RestoreEtcd replaces the state of etcd by a snapshot and restarts etcd and
// the API server, as the documentation of Kubernetes says. With bump,
// revisions are raised by that much and what was before is marked as
// compacted; zero leaves them as they were.
func (c *ControlPlane) RestoreEtcd(ctx context.Context, path string, bump uint64) error {
	program, err := Binary("etcdutl")
	if err != nil {
		return err
	}
	if err := errors.Join(c.StopAPIServer(), c.stopEtcd()); err != nil {
		return err
	}
	if err := os.RemoveAll(c.etcdData()); err != nil {
		return fmt.Errorf("removing the state of etcd: %w", err)
	}
	args := []string{"snapshot", "restore", path, "--data-dir=" + c.etcdData(), "--name=" + memberName,
		"--initial-cluster=" + memberName + "=" + c.peerURL(), "--initial-advertise-peer-urls=" + c.peerURL()}
	if bump > 0 {
		args = append(args, "--mark-compacted", "--bump-revision="+strconv.FormatUint(bump, 10))
	}
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("restoring etcd from %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	if err := c.StartEtcd(ctx); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}
