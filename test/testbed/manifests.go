// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"
)

// ApplyNodes writes the manifests of the cluster's nodes and pods.
func (c *Cluster) ApplyNodes() error {
	var objects []runtime.Object
	for _, node := range c.Nodes {
		objects = append(objects, node.Object())
		for _, pod := range node.Pods {
			objects = append(objects, pod.Object())
		}
	}
	return c.Apply("nodes", objects...)
}

// ApplyService writes the manifests of a service to one file.
func (c *Cluster) ApplyService(service Service) error {
	return c.Apply(serviceFile(service.namespace(), service.Name), service.Objects()...)
}

// DeleteService removes the file that ApplyService wrote.
func (c *Cluster) DeleteService(service Service) error {
	return c.Delete(serviceFile(service.namespace(), service.Name))
}

func serviceFile(namespace, name string) string { return "service-" + namespace + "-" + name }

// Apply writes objects to the file of that name in the manifest directory,
// at once or not at all.
func (c *Cluster) Apply(name string, objects ...runtime.Object) error {
	var text bytes.Buffer
	for _, object := range objects {
		data, err := yaml.Marshal(object)
		if err != nil {
			return fmt.Errorf("encode manifest: %w", err)
		}
		fmt.Fprintf(&text, "---\n%s", data)
	}
	return c.ApplyText(name, text.Bytes())
}

// ApplyText is Apply for text of any kind.
func (c *Cluster) ApplyText(name string, text []byte) error {
	// Written elsewhere, so that nobody sees half of it.
	draft := filepath.Join(c.Dir, "draft-"+name)
	if err := os.WriteFile(draft, text, 0o644); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	if err := os.Rename(draft, c.manifestPath(name)); err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

// Delete removes the file of that name from the manifest directory.
func (c *Cluster) Delete(name string) error {
	if err := os.Remove(c.manifestPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove manifest: %w", err)
	}
	return nil
}

func (c *Cluster) manifestPath(name string) string {
	return filepath.Join(c.ManifestDir(), name+".yaml")
}
