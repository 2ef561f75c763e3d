// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// TestManifests renders every kustomization of deploy/ and lets the API server
// judge it, unknown fields included.
func TestManifests(t *testing.T) {
	ctx := limit(t, 90*time.Second)
	plane, err := controlplane.Start(ctx, controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	// A dry run creates no namespace for what is to live in it.
	if _, err := plane.Kubectl(ctx, nil, "apply", "-f", filepath.Join(deployDir, "base", "namespace.yaml")); err != nil {
		t.Fatal(err)
	}
	var dirs []string
	err = filepath.WalkDir(deployDir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "kustomization.yaml" {
			dirs = append(dirs, filepath.Dir(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 2 {
		t.Fatalf("found only %v; want a base and an overlay", dirs)
	}
	for _, dir := range dirs {
		name, _ := filepath.Rel(deployDir, dir)
		t.Run(name, func(t *testing.T) {
			rendered, err := plane.Kubectl(ctx, nil, "kustomize", dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, kind := range []string{"Deployment", "DaemonSet", "ClusterRole", "ServiceAccount"} {
				if !strings.Contains(rendered, "kind: "+kind+"\n") {
					t.Errorf("%s renders no %s", name, kind)
				}
			}
			accepted, err := plane.Kubectl(ctx, strings.NewReader(rendered),
				"apply", "--dry-run=server", "--validate=strict", "-f", "-")
			if err != nil {
				t.Fatal(err)
			}
			if objects, lines := strings.Count(rendered, "\nkind: "), strings.Count(accepted, "\n"); lines < objects {
				t.Errorf("%d objects were rendered and %d accepted:\n%s", objects, lines, accepted)
			}
			// The judge must be able to say no.
			broken := strings.Replace(rendered, "hostNetwork: true", "hostNetworks: true", 1)
			if _, err := plane.Kubectl(ctx, strings.NewReader(broken), "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err == nil {
				t.Error("a misspelt field was accepted")
			}
		})
	}
}
