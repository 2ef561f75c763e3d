// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Remove removes the log from the state directory, and the one that it went on
// in as fallback, if not empty: the node is to forget what it was told. No agent
// may be using them.
func Remove(dir, fallback string) error {
	log := filepath.Join(dir, fileName)
	files := []string{log, log + suffixNew, filepath.Join(dir, lockName)}
	if fallback != "" {
		files = append(files, fallback, fallback+suffixNew)
	}
	var failed error
	for _, file := range files {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, fmt.Errorf("remove the state log: %w", err))
		}
	}
	return failed
}
