// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// overlayDir has what is applied: deploy/ as it is in the repository, and an
// overlay for this cluster, as an operator would write it.
func (c *Cluster) overlayDir() string { return c.path("install", "overlays", "cluster") }

// installMillrace applies the overlay.
func (c *Cluster) installMillrace(ctx context.Context) error {
	if err := c.writeOverlay(); err != nil {
		return fmt.Errorf("writing the overlay: %w", err)
	}
	if _, err := c.Kubectl(ctx, nil, "apply", "-k", c.overlayDir()); err != nil {
		return fmt.Errorf("installing Millrace: %w", err)
	}
	return nil
}

func (c *Cluster) writeOverlay() error {
	for _, part := range []string{"base", "components", "overlays"} {
		if err := os.CopyFS(c.path("install", part), os.DirFS(filepath.Join(c.opts.Source, "deploy", part))); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.overlayDir(), 0o755); err != nil {
		return err
	}
	calculators := 0
	for _, n := range c.nodes {
		if n.controlPlane() {
			calculators++
		}
	}
	overlay := strings.NewReplacer(
		"REGISTRY", Registry, "TAG", Tag,
		"REPLICAS", fmt.Sprint(min(2, calculators)),
		"API_SERVER", c.ControlPlaneAddress().String(),
	).Replace(overlayText) + CgroupPatch()
	return os.WriteFile(filepath.Join(c.overlayDir(), "kustomization.yaml"), []byte(overlay), 0o644)
}

// CgroupPatch is what an overlay needs on nodes of this machine: they have the
// hierarchy of version 2 not at the usual place if there are others of version 1.
func CgroupPatch() string {
	mount := "/sys/fs/cgroup/unified"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		mount = "/sys/fs/cgroup"
	}
	return fmt.Sprintf(cgroupPatch, mount)
}

const cgroupPatch = `patches:
  - target: {kind: DaemonSet, name: millrace-agent}
    patch: |-
      apiVersion: apps/v1
      kind: DaemonSet
      metadata: {name: millrace-agent}
      spec:
        template:
          spec:
            volumes:
              - name: cgroup
                hostPath: {path: %s, type: Directory}
`

const overlayText = `# SPDX-License-Identifier: Apache-2.0
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: millrace-system
resources:
  - ../../base
images:
  - {name: millrace-agent, newName: REGISTRY/millrace-agent, newTag: TAG}
  - {name: millrace-calculator, newName: REGISTRY/millrace-calculator, newTag: TAG}
replicas:
  - {name: millrace-calculator, count: REPLICAS}
configMapGenerator:
  - name: kubernetes-services-endpoint
    literals:
      - KUBERNETES_SERVICE_HOST=API_SERVER
      - KUBERNETES_SERVICE_PORT=6443
generatorOptions:
  disableNameSuffixHash: true
`
