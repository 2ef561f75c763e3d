// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSocketsRefused has the kernel refuse the programs of sockets, for the
// cgroup is not there: that is reported, tables are not replaced, and it heals
// once the cgroup is there.
func TestSocketsRefused(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	attached := len(n.system.Attachments())
	if attached == 0 {
		t.Fatal("no programs of sockets are attached")
	}
	later := filepath.Join(n.cgroup, "later")
	n.system.cgroup = later
	n.plane.AttachSockets()
	for _, look := range []func() []string{
		func() []string { return n.plane.Refresh(ctx).Report.GetProblems() },
		func() []string { return n.plane.Retry(ctx).Report.GetProblems() },
	} {
		if problems := strings.Join(look(), "; "); !strings.Contains(problems, later) {
			t.Errorf("problems %q do not name %s", problems, later)
		}
	}
	if !n.plane.Refresh(ctx).Retry || n.plane.Unattached() == "" {
		t.Error("it is not tried again")
	}
	if _, err := n.system.PrepareGrowth(map[string]uint32{"backends_v4": 2048}); err == nil || !strings.Contains(err.Error(), later) {
		t.Errorf("tables would be replaced: %v", err)
	}
	if _, err := n.system.Succeed(); err == nil {
		t.Error("what was before would be removed")
	}

	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(later) })
	result := n.plane.Retry(ctx)
	if why := n.plane.Unattached(); why != "" || result.Retry || strings.Contains(strings.Join(result.Report.GetProblems(), "; "), later) {
		t.Fatalf("it did not heal: %q, %v", why, result)
	}
	if missing, err := n.system.MissingAttachments(); err != nil || len(missing) > 0 || len(n.system.Attachments()) != attached {
		t.Fatalf("missing %v (%v), attached %v", missing, err, n.system.Attachments())
	}
}
