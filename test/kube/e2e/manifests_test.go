// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// TestManifests renders every kustomization of deploy/ and lets the API server
// judge it, unknown fields included.
func TestManifests(t *testing.T) {
	ctx := harness.Limit(t, 90*time.Second)
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

// TestManifestArguments gives every container's arguments to the program it
// runs: a flag that the program does not have would end it at its start.
func TestManifestArguments(t *testing.T) {
	if err := buildBinaries(); err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"calculator": binaries.Calculator, "agent": binaries.Agent}
	for name, program := range programs {
		data, err := os.ReadFile(filepath.Join(deployDir, "base", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		// Deployment and DaemonSet have their pods in the same place.
		var workload appsv1.Deployment
		first, _, _ := bytes.Cut(data, []byte("\n---\n"))
		if err := yaml.Unmarshal(first, &workload); err != nil {
			t.Fatal(err)
		}
		for _, container := range workload.Spec.Template.Spec.Containers {
			if container.Name != name {
				t.Errorf("%s has an unexpected container %s", name, container.Name)
				continue
			}
			if len(container.Args) == 0 {
				t.Errorf("%s has no arguments", name)
			}
			out, err := exec.CommandContext(t.Context(), program, append(container.Args, "--help")...).CombinedOutput()
			if err != nil {
				t.Errorf("%s %v: %v: %s", name, container.Args, err, out)
			}
			out, err = exec.CommandContext(t.Context(), program, "--no-such-flag", "--help").CombinedOutput()
			if err == nil {
				t.Errorf("%s accepts any flag before --help: %s", name, out)
			}
		}
	}
}
