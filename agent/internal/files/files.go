// SPDX-License-Identifier: Apache-2.0

// Package files writes files that others read at any time.
package files

import (
	"errors"
	"os"
	"path/filepath"
)

// Write makes a file that its owner alone can read hold the content, whole or not
// at all. It is not synced: it is to outlive the process, not the machine. A
// process that is killed may leave half of one beside it, with a longer name.
func Write(path string, content []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name()) //nolint:errcheck // the first error is told
	}
	return err
}

// SyncDir makes what was made, renamed or removed in a directory last.
func SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
