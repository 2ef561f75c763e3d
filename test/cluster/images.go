// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/millrace-project/millrace/test/certs"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// Registry is where all images seem to come from. There is none: nodes have every
// image from the start.
const Registry = "images.example.com"

// Tag is the tag of Millrace's images.
const Tag = "devel"

// Upstream images that nodes have.
const (
	pauseImage   = Registry + "/pause:3.10.2"
	corednsImage = Registry + "/coredns:v1.15.0"
	// AgnhostImage is the image of Kubernetes' own tests: servers and clients
	// of every kind, and a shell.
	AgnhostImage = Registry + "/agnhost:2.66.1"
)

// agnhostNames are what upstream's tests call images that agnhost's serves for.
var agnhostNames = []string{
	AgnhostImage,
	Registry + "/glibc-dns-testing:2.1.1",
	Registry + "/busybox:1.37.0-2",
}

// agnhostPackages are the Debian packages of its root filesystem. Shell and
// getent are the C library's and not busybox's, whose applets shadow others.
const agnhostPackages = "bash,bind9-dnsutils,ca-certificates,conntrack,coreutils,curl,findutils,grep,hostname,iproute2," +
	"iptables,iputils-ping,libc-bin,mawk,netcat-openbsd,procps,sed,util-linux,wget"

// agnhostHook does what the packages' scripts would, which are not run, and
// removes what nobody reads.
const agnhostHook = `cd "$1" && ln -sf bash bin/sh && ln -sf nc.openbsd bin/nc && ln -sf mawk usr/bin/awk && ` +
	`ln -sf xtables-nft-multi usr/sbin/iptables && ln -sf xtables-nft-multi usr/sbin/ip6tables && ` +
	`rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info usr/share/zoneinfo var/lib/apt var/cache/apt`

// image is an archive to import, with the image's name.
type image struct{ archive, name string }

// buildImages makes Millrace's images, if the cluster is to have it.
func (c *Cluster) buildImages(ctx context.Context) ([]image, error) {
	if c.opts.Proxy != Millrace {
		return nil, nil
	}
	b := &builder{source: c.opts.Source}
	if err := b.run(ctx, "env", "REGISTRY="+Registry, "deploy/build-images", Tag); err != nil {
		return nil, err
	}
	var images []image
	for _, name := range []string{"millrace-agent", "millrace-calculator"} {
		images = append(images, image{
			archive: filepath.Join(b.source, "build/images", name+"-"+runtime.GOARCH+".tar"),
			name:    Registry + "/" + name + ":" + Tag,
		})
	}
	return images, nil
}

// buildUpstream makes the images that are not Millrace's, unless they are in
// the cache.
func (b *builder) buildUpstream(ctx context.Context) ([]image, error) {
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	coredns, err := controlplane.Binary("coredns")
	if err != nil {
		return nil, err
	}
	agnhost, err := controlplane.Binary("agnhost")
	if err != nil {
		return nil, err
	}
	root, err := b.root(ctx)
	if err != nil {
		return nil, err
	}
	images := []image{{name: pauseImage}, {name: corednsImage}, {name: AgnhostImage}}
	if images[0].archive, err = b.image(ctx, "pause", filepath.Join(b.source, "build/pause"), "--name", pauseImage, "--user", "65535:65535"); err != nil {
		return nil, err
	}
	if images[1].archive, err = b.image(ctx, "coredns", coredns, "--name", corednsImage, "--user", "0:0"); err != nil {
		return nil, err
	}
	args := []string{"--user", "0:0", "--base", root, "--argument", "pause"}
	for _, name := range agnhostNames {
		args = append(args, "--name", name)
	}
	images[2].archive, err = b.image(ctx, "agnhost", agnhost, args...)
	return images, err
}

// importImages gives every node every image.
func (c *Cluster) importImages(ctx context.Context, images []image) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range c.nodes {
		group.Go(func() error {
			for _, i := range images {
				if err := n.importImage(ctx, i); err != nil {
					return fmt.Errorf("importing image %s on %s: %w", i.name, n.Name, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (n *Node) importImage(ctx context.Context, i image) error {
	archive, err := os.Open(i.archive)
	if err != nil {
		return err
	}
	defer archive.Close()
	cmd, err := n.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = archive
	_, err = output(cmd)
	return err
}

// builder makes image archives, and keeps those that do not change.
type builder struct {
	source string
	cache  string
}

func (b *builder) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = b.source
	_, err := output(cmd)
	return err
}

// prepare builds the image builder and the pause program.
func (b *builder) prepare(ctx context.Context) error {
	if err := os.MkdirAll(b.cache, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", "../../build/image", ".")
	cmd.Dir = filepath.Join(b.source, "deploy/image")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if _, err := output(cmd); err != nil {
		return err
	}
	cmd = exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", "build/pause", "./test/cluster/pause")
	cmd.Dir = b.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(cmd)
	return err
}

// root makes the root filesystem of agnhost's image.
func (b *builder) root(ctx context.Context) (string, error) {
	key := sha256.Sum256([]byte(agnhostPackages + agnhostHook + "localhost.crt"))
	path := filepath.Join(b.cache, "agnhost-root-"+hex.EncodeToString(key[:8])+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "millrace-agnhost-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := writeLocalhost(dir); err != nil {
		return "", err
	}
	err = b.run(ctx, "mmdebstrap", "--quiet", "--variant=extract", "--format=tar", "--include="+agnhostPackages,
		"--extract-hook="+agnhostHook, "--extract-hook=copy-in "+filepath.Join(dir, "localhost.crt")+" "+filepath.Join(dir, "localhost.key")+" /",
		"bookworm", path+".new")
	if err != nil {
		return "", fmt.Errorf("making the root filesystem of agnhost's image: %w", err)
	}
	return path, os.Rename(path+".new", path)
}

// writeLocalhost makes the certificate that agnhost serves with if a pod brings
// none. Nobody verifies it, so it may expire in the cache.
func writeLocalhost(dir string) error {
	ca, err := certs.NewAuthority("agnhost")
	if err != nil {
		return err
	}
	pair, err := ca.Issue(pkix.Name{CommonName: "localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, net.IPv4(127, 0, 0, 1), net.IPv6loopback)
	if err != nil {
		return err
	}
	if err := pair.Write(dir, "localhost"); err != nil {
		return err
	}
	return os.Chmod(filepath.Join(dir, "localhost.key"), 0o644) // agnhost may run as anybody
}

// image writes an image of one program unless there is one of the same input.
func (b *builder) image(ctx context.Context, name, program string, args ...string) (string, error) {
	hash := sha256.New()
	fmt.Fprintln(hash, strings.Join(args, " "))
	for _, path := range []string{program, filepath.Join(b.source, "build/image")} {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(hash, file)
		file.Close()
		if err != nil {
			return "", err
		}
	}
	out := filepath.Join(b.cache, name+".tar")
	stamp := out + ".built"
	key := hex.EncodeToString(hash.Sum(nil))
	if kept, err := os.ReadFile(stamp); err == nil && string(kept) == key {
		if _, err := os.Stat(out); err == nil {
			return out, nil
		}
	}
	os.Remove(stamp)
	if err := b.run(ctx, filepath.Join(b.source, "build/image"), append(append([]string{"--out", out}, args...), program)...); err != nil {
		return "", err
	}
	return out, os.WriteFile(stamp, []byte(key), 0o644)
}
