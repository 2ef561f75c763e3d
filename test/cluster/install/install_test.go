// SPDX-License-Identifier: Apache-2.0

// Package install runs the operators' page about installing on a real cluster.
package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/clustertest"
	"github.com/millrace-project/millrace/test/docs"
	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

func TestMain(m *testing.M) { clustertest.Main(m) }

// source is the root of the repository.
const source = "../../.."

// TestInstallPage runs every command of docs/install.md in their order: over the
// installation that there is, which the end of the page removes, and then, up to
// the check, on a cluster without Millrace.
func TestInstallPage(t *testing.T) {
	c := clustertest.Millrace(t)
	blocks, err := docs.Blocks(filepath.Join(source, "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	node := c.Nodes()[0]
	ctx := harness.Limit(t, 10*time.Minute)
	tools := agentOnNode(ctx, t, node)
	run := func(t *testing.T, blocks []docs.Block) {
		t.Helper()
		r := newRunner(t, c)
		r.Node = func(ctx context.Context, script string) ([]byte, error) {
			out, err := node.Exec(ctx, "bash", "-euc", "PATH="+tools+":$PATH\n"+script)
			return []byte(out), err
		}
		for _, b := range blocks {
			if err := r.Run(ctx, b); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("all", func(t *testing.T) { run(t, blocks) })
	for _, n := range c.Nodes() {
		out, err := n.Exec(ctx, "bash", "-c", "ls -A /sys/fs/bpf/millrace /var/lib/millrace /run/millrace /opt/cni/bin/millrace-cni 2>/dev/null; grep -l millrace-cni /etc/cni/net.d/* || true")
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasSuffix(line, ":") {
				t.Errorf("%s still has %s", n.Name, line)
			}
		}
		if err != nil && !strings.Contains(err.Error(), "exit status") {
			t.Error(err)
		}
	}
	t.Run("from nothing", func(t *testing.T) {
		var some []docs.Block
		for _, b := range blocks {
			if b.Section == "Upgrade" {
				break
			}
			some = append(some, b)
		}
		run(t, some)
	})
	if err := c.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// newRunner knows the cluster's values of the page's settings.
func newRunner(t *testing.T, c *cluster.Cluster) *docs.Runner {
	t.Helper()
	kubectl, err := controlplane.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	r := &docs.Runner{Source: source, Dir: t.TempDir(), Log: t.Logf,
		Env:     []string{"KUBECONFIG=" + c.Kubeconfig(), "PATH=" + filepath.Dir(kubectl) + ":" + os.Getenv("PATH")},
		Overlay: cluster.CgroupPatch(),
		Settings: map[string]string{
			"IMAGES": cluster.Registry, "TAG": cluster.Tag, "CALCULATORS": fmt.Sprint(min(2, len(c.Nodes()))),
			"API_SERVER_HOST": c.ControlPlaneAddress().String(), "API_SERVER_PORT": "6443",
		}}
	if err := r.Prepare(); err != nil {
		t.Fatal(err)
	}
	return r
}

// agentOnNode puts the agent's program where a node sees it, and returns the
// directory. Nodes have a /tmp of their own.
func agentOnNode(ctx context.Context, t *testing.T, node *cluster.Node) string {
	t.Helper()
	bin := os.Getenv("MILLRACE_BIN")
	if bin == "" {
		t.Skip("MILLRACE_BIN names no directory with the agent")
	}
	program, err := os.Open(filepath.Join(bin, "millrace-agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	const dir = "/tmp/install-page"
	cmd, err := node.Command(ctx, "bash", "-c", "mkdir -p "+dir+" && cat > "+dir+"/millrace-agent && chmod +x "+dir+"/millrace-agent")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = program
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("putting the agent on %s: %v: %s", node.Name, err, out)
	}
	return dir
}
