// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/millrace-project/millrace/test/harness"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// uninstall is the one kustomization that is not an installation.
const uninstall = "overlays/uninstall"

// kustomizations are the names of all, below deployDir. Components are part of
// the overlays that use them.
func kustomizations(t *testing.T) []string {
	t.Helper()
	var names []string
	used := map[string]bool{}
	var components []string
	err := filepath.WalkDir(deployDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "kustomization.yaml" {
			return err
		}
		name, err := filepath.Rel(deployDir, filepath.Dir(path))
		if err != nil {
			return err
		}
		var k struct {
			Kind       string
			Components []string
		}
		if err := readYAML(path, &k); err != nil {
			return err
		}
		if k.Kind == "Component" {
			components = append(components, name)
			return nil
		}
		for _, component := range k.Components {
			used[filepath.Join(name, component)] = true
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 7 {
		t.Fatalf("found only %v", names)
	}
	for _, component := range components {
		if !used[component] {
			t.Errorf("no overlay has %s, so that nothing checks it", component)
		}
	}
	return names
}

// render returns the objects of a kustomization, in YAML and one by one.
func render(ctx context.Context, t *testing.T, name string) (text string, objects []string) {
	t.Helper()
	kubectl, err := controlplane.Binary("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, kubectl, "kustomize", filepath.Join(deployDir, name)).Output()
	if err != nil {
		t.Fatalf("render %s: %v: %s", name, err, stderrOf(err))
	}
	text = string(out)
	return text, strings.Split(strings.TrimSpace(text), "\n---\n")
}

// TestManifests renders every kustomization of deploy/ and lets the API server
// judge it, unknown fields included.
func TestManifests(t *testing.T) {
	ctx := harness.Limit(t, 120*time.Second)
	plane, err := controlplane.Start(ctx, controlplane.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	kubectl := func(stdin string, args ...string) (string, error) {
		return plane.Kubectl(ctx, strings.NewReader(stdin), args...)
	}
	// A dry run creates no namespace for what is to live in it.
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(deployDir, "base", "namespace.yaml")},
		{"apply", "-f", filepath.Join("testdata", "crds.yaml")},
		{"wait", "--for=condition=Established", "--timeout=60s", "-f", filepath.Join("testdata", "crds.yaml")},
	} {
		if _, err := kubectl("", args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range kustomizations(t) {
		t.Run(name, func(t *testing.T) {
			rendered, objects := render(ctx, t, name)
			wanted := []string{"Deployment", "DaemonSet", "ClusterRole", "ServiceAccount", "PodDisruptionBudget"}
			if name == uninstall {
				wanted = []string{"DaemonSet"}
			}
			for _, kind := range wanted {
				if !strings.Contains(rendered, "kind: "+kind+"\n") {
					t.Errorf("%s renders no %s", name, kind)
				}
			}
			accepted, err := kubectl(rendered, "apply", "--dry-run=server", "--validate=strict", "-f", "-")
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Count(accepted, "\n"); lines != len(objects) {
				t.Errorf("%d objects were rendered and %d accepted:\n%s", len(objects), lines, accepted)
			}
			// The judge must be able to say no, to each kind.
			judged := map[string]bool{}
			for _, object := range objects {
				var meta metav1.TypeMeta
				if err := yaml.Unmarshal([]byte(object), &meta); err != nil {
					t.Fatal(err)
				}
				broken := object + "\nmisspelt: true\n"
				if strings.Contains(object, "\nspec:\n") {
					broken = strings.Replace(object, "\nspec:\n", "\nspec:\n  misspelt: true\n", 1)
				}
				if judged[meta.Kind] {
					continue
				}
				judged[meta.Kind] = true
				if _, err := kubectl(broken, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err == nil || !strings.Contains(err.Error(), "misspelt") {
					t.Errorf("a misspelt field of a %s was accepted: %v", meta.Kind, err)
				}
			}
		})
	}
}

// workload is what Deployments and DaemonSets have in common.
type workload struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas       *int32
		Template       corev1.PodTemplateSpec
		Strategy       appsv1.DeploymentStrategy
		UpdateStrategy appsv1.DaemonSetUpdateStrategy
	}
}

// workloads are the Deployments and DaemonSets among the objects.
func workloads(t *testing.T, objects []string) []workload {
	t.Helper()
	var list []workload
	for _, object := range objects {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(object), &meta); err != nil {
			t.Fatal(err)
		}
		if meta.Kind != "Deployment" && meta.Kind != "DaemonSet" {
			continue
		}
		var w workload
		if err := yaml.Unmarshal([]byte(object), &w); err != nil {
			t.Fatal(err)
		}
		list = append(list, w)
	}
	return list
}

// TestManifestArguments gives every container's arguments to the program it
// runs: a flag that the program does not have would end it at its start.
func TestManifestArguments(t *testing.T) {
	if err := buildBinaries(); err != nil {
		t.Fatal(err)
	}
	ctx := harness.Limit(t, 120*time.Second)
	programs := map[string]string{"millrace-calculator": binaries.Calculator, "millrace-agent": binaries.Agent}
	for _, program := range programs {
		if out, err := exec.CommandContext(ctx, program, "--no-such-flag", "--help").CombinedOutput(); err == nil {
			t.Errorf("%s accepts any flag before --help: %s", program, out)
		}
	}
	for _, name := range kustomizations(t) {
		_, objects := render(ctx, t, name)
		ran := 0
		for _, w := range workloads(t, objects) {
			for _, container := range append(w.Spec.Template.Spec.InitContainers, w.Spec.Template.Spec.Containers...) {
				if len(container.Command) > 0 {
					continue // another program of the image, which takes no flags
				}
				image, _, _ := strings.Cut(container.Image[strings.LastIndexByte(container.Image, '/')+1:], ":")
				program := programs[image]
				if program == "" || len(container.Args) == 0 {
					t.Errorf("%s: container %s of %s: image %s, arguments %v", name, container.Name, w.Name, container.Image, container.Args)
					continue
				}
				ran++
				out, err := exec.CommandContext(ctx, program, append(container.Args, "--help")...).CombinedOutput()
				if err != nil {
					t.Errorf("%s: container %s of %s: %v: %v: %s", name, container.Name, w.Name, container.Args, err, out)
				}
			}
		}
		if ran == 0 {
			t.Errorf("%s runs nothing", name)
		}
	}
}
