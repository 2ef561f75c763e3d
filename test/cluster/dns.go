// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

//go:embed dns.yaml
var dnsManifest string

// installDNS installs CoreDNS.
func (c *Cluster) installDNS(ctx context.Context) error {
	manifest := strings.NewReplacer(
		"IMAGE", corednsImage,
		"ADDRESS", strconv.Quote(dnsAddress(c.opts.Family).String()),
	).Replace(dnsManifest)
	if _, err := c.Kubectl(ctx, strings.NewReader(manifest), "apply", "-f", "-"); err != nil {
		return fmt.Errorf("installing CoreDNS: %w", err)
	}
	return nil
}
