// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"os"

	"github.com/millrace-project/millrace/test/cluster/cgroups"
)

// Remove ends whatever there is of a cluster and removes it. It works however
// far the cluster's start came; one that does not exist is fine.
func Remove(ctx context.Context, name string) error {
	if name == "" {
		name = defaultName
	}
	if !validName.MatchString(name) {
		return fmt.Errorf("name of the cluster: %q is not allowed", name)
	}
	// Mounts go with the mount namespaces that the processes were in.
	if err := cgroups.Remove(ctx, groupOf(name)); err != nil {
		return err
	}
	if err := removeNetwork(ctx, name); err != nil {
		return err
	}
	if err := os.RemoveAll(directory(name)); err != nil {
		return fmt.Errorf("removing the cluster's directory: %w", err)
	}
	// Fails while there are other clusters.
	os.Remove(stateRoot)
	return nil
}

// Remove ends the cluster and removes all of it.
func (c *Cluster) Remove(ctx context.Context) error { return Remove(ctx, c.opts.Name) }
