// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/kube/controlplane"
	"github.com/millrace-project/millrace/test/testbed"
)

// imageStore returns a directory of containerd's that has the upstream images
// unpacked. Nodes start with a copy of it: unpacking them on every node of
// every cluster would take most of a start.
func (c *Cluster) imageStore(ctx context.Context) (string, error) {
	bin, err := controlplane.BinDir()
	if err != nil {
		return "", err
	}
	b := &builder{source: c.opts.Source, cache: filepath.Join(filepath.Dir(bin), "images")}
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return "", err
	}
	// Another cluster may be starting.
	lock, err := os.OpenFile(filepath.Join(b.cache, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking the cache of images: %w", err)
	}
	images, err := b.buildUpstream(ctx)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, i := range images {
		stamp, err := os.ReadFile(i.archive + ".built")
		if err != nil {
			return "", err
		}
		hash.Write(stamp)
	}
	store := filepath.Join(b.cache, "store-"+hex.EncodeToString(hash.Sum(nil)[:8]))
	if _, err := os.Stat(store); err == nil {
		return store, nil
	}
	older, err := filepath.Glob(filepath.Join(b.cache, "store-*"))
	if err != nil {
		return "", err
	}
	for _, path := range older {
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
	}
	if err := fillStore(ctx, store+".new", images); err != nil {
		return "", fmt.Errorf("filling a store of images: %w", err)
	}
	return store, os.Rename(store+".new", store)
}

// fillStore lets a containerd import the images into a new directory.
func fillStore(ctx context.Context, dir string, images []image) (err error) {
	run, err := os.MkdirTemp("", "millrace-containerd-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(run)
	socket := filepath.Join(run, "containerd.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n",
		dir, filepath.Join(run, "state"), socket)
	configFile := filepath.Join(run, "config.toml")
	if err := os.WriteFile(configFile, []byte(config), 0o644); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(run, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	containerd := exec.Command("containerd", "--config="+configFile)
	containerd.Stdout, containerd.Stderr = log, log
	containerd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := containerd.Start(); err != nil {
		return err
	}
	defer func() {
		// It closes its databases.
		err = errors.Join(err, containerd.Process.Signal(syscall.SIGTERM))
		containerd.Wait()
	}()
	ctr := func(ctx context.Context, args ...string) error {
		_, err := output(exec.CommandContext(ctx, "ctr", append([]string{"--address=" + socket, "-n", "k8s.io"}, args...)...))
		return err
	}
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := wait(starting, "containerd", func() error { return ctr(starting, "version") }); err != nil {
		return fmt.Errorf("%w; its last lines:\n%s", err, testbed.Tail(log.Name(), 10))
	}
	for _, i := range images {
		if err := ctr(ctx, "images", "import", i.archive); err != nil {
			return fmt.Errorf("importing %s: %w", i.name, err)
		}
	}
	return nil
}

// copyStore gives a node its own store. Layers and blobs never change, so they
// are the same files; databases are the node's own.
func copyStore(ctx context.Context, store, dir string) error {
	if _, err := output(exec.CommandContext(ctx, "cp", "-a", "--link", store, dir)); err != nil {
		// Another filesystem.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		_, err := output(exec.CommandContext(ctx, "cp", "-a", store, dir))
		return err
	}
	databases, err := filepath.Glob(filepath.Join(store, "*", "*.db"))
	if err != nil {
		return err
	}
	for _, from := range databases {
		to := filepath.Join(dir, filepath.Base(filepath.Dir(from)), filepath.Base(from))
		if err := os.Remove(to); err != nil {
			return err
		}
		if err := copyFile(from, to); err != nil {
			return err
		}
	}
	return nil
}
