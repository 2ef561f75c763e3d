// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/millrace-project/millrace/agent/internal/cniplugin"
	"github.com/millrace-project/millrace/agent/internal/files"
)

// Remove takes the plugin out of every configuration of the directory, then out
// of the other. It returns what it changed or removed.
func Remove(binDir, confDir string) (changed []string, err error) {
	if confDir != "" {
		names, err := configs(confDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("read the node's CNI configurations: %w", err)
		}
		for _, name := range names {
			if filepath.Ext(name) != ".conflist" {
				continue
			}
			path := filepath.Join(confDir, name)
			did, err := removeFrom(path)
			if err != nil {
				return changed, fmt.Errorf("take the CNI plugin out of %s: %w", path, err)
			}
			if did {
				changed = append(changed, path)
			}
		}
		removeTemporary(confDir)
	}
	if binDir == "" {
		return changed, nil
	}
	removeTemporary(binDir)
	path := filepath.Join(binDir, cniplugin.Type)
	switch err := os.Remove(path); {
	case err == nil:
		changed = append(changed, path)
	case !errors.Is(err, fs.ErrNotExist):
		return changed, fmt.Errorf("remove the CNI plugin: %w", err)
	}
	return changed, nil
}

func removeFrom(path string) (bool, error) {
	for range 5 {
		text, err := os.ReadFile(path)
		if err != nil {
			return false, err
		}
		if l, err := parseList(text); err != nil || len(l.ours()) == 0 {
			return false, nil // not one that the plugin is in
		}
		if aside, ok := asideOf(path); ok {
			// It comes before the list once it is back, so the node is never without.
			if err := os.Rename(aside, strings.TrimSuffix(aside, wrapped)); err != nil {
				return false, err
			}
			return true, errors.Join(os.Remove(path), files.SyncDir(filepath.Dir(path)))
		}
		without, err := unchain(text)
		switch {
		case err != nil:
			return false, err
		case without == nil:
			return true, os.Remove(path)
		case bytes.Equal(without, text):
			return false, nil
		}
		if err := replace(path, text, without); !errors.Is(err, errChanged) {
			return err == nil, err
		}
	}
	return false, errChanged
}
