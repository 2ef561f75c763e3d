// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// LayoutsRecord is where an agent writes down the layouts of the maps it pins.
func (n *Node) LayoutsRecord() string { return filepath.Join(n.BPFDir, "maps", "layouts") }

// ForgeLayouts makes the record of a node's maps say that those whose names match
// have another layout than any agent knows: the next one finds what an upgrade
// finds. No agent may run.
func (n *Node) ForgeLayouts(maps string) error {
	text, err := os.Readlink(n.LayoutsRecord())
	if err != nil {
		return err
	}
	names := regexp.MustCompile(`\b(` + maps + `)=\S+`)
	if !names.MatchString(text) {
		return fmt.Errorf("no map %s in the record of layouts %q", maps, text)
	}
	// The record of the objects goes, too: it would vouch for all layouts at once.
	forged := regexp.MustCompile(`\b(objects|`+maps+`)=\S+`).ReplaceAllString(text, "$1=000000000000")
	return errors.Join(os.Remove(n.LayoutsRecord()), os.Symlink(forged, n.LayoutsRecord()))
}
