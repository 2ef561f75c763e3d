// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/files"
)

// temporary is how names of files begin that are being written. Neither container
// runtimes nor CNI libraries look at them.
const temporary = ".millrace-"

// writeBeside writes a file beside another, synced, with the owner and mode that
// info has.
func writeBeside(path string, content io.Reader, mode fs.FileMode, info fs.FileInfo) (name string, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), temporary+filepath.Base(path)+".*.tmp")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			file.Close()           //nolint:errcheck // the first error is told
			os.Remove(file.Name()) //nolint:errcheck // the first error is told
		}
	}()
	if _, err = io.Copy(file, content); err != nil {
		return "", err
	}
	if info != nil {
		mode = info.Mode().Perm()
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			if err = file.Chown(int(owner.Uid), int(owner.Gid)); err != nil && !errors.Is(err, unix.EPERM) {
				return "", err
			}
		}
	}
	if err = errors.Join(file.Chmod(mode), file.Sync(), file.Close()); err != nil {
		return "", err
	}
	return file.Name(), nil
}

// errChanged says that somebody else changed a file in the same moment.
var errChanged = errors.New("somebody else changed the file in this moment")

// replace replaces a file whose content is known by another, at once. If the file
// turns out to be another by then, it stays: errChanged.
func replace(path string, known, content []byte) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode().Type() == fs.ModeSymlink {
		// The file is what counts; the link is somebody's too.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
		if info, err = os.Lstat(path); err != nil {
			return err
		}
	}
	name, err := writeBeside(path, bytes.NewReader(content), 0o644, info)
	if err != nil {
		return err
	}
	defer os.Remove(name) //nolint:errcheck // it is gone if all went well, or one too many
	err = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// A filesystem that cannot exchange: look and rename.
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, known) {
			return errors.Join(errChanged, err)
		}
		err = os.Rename(name, path)
	case err == nil:
		former, failure := os.ReadFile(name)
		if failure == nil && bytes.Equal(former, known) {
			break
		}
		// Another was in its place already: it goes back there.
		return errors.Join(errChanged, failure, unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE))
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return files.SyncDir(filepath.Dir(path))
}

// create makes a file hold the content, at once, whatever was there.
func create(path string, content io.Reader, mode fs.FileMode, like fs.FileInfo) error {
	name, err := writeBeside(path, content, mode, like)
	if err != nil {
		return err
	}
	if err := os.Rename(name, path); err != nil {
		os.Remove(name) //nolint:errcheck // the first error is told
		return err
	}
	return files.SyncDir(filepath.Dir(path))
}

// sameProgram tells whether a path is a program of the same content. It leaves the
// wanted one at its beginning.
func sameProgram(want *os.File, path string) (bool, error) {
	wanted, err := want.Stat()
	if err != nil {
		return false, err
	}
	have, err := os.Open(path)
	if err != nil {
		return false, nil //nolint:nilerr // it is made anew
	}
	defer have.Close() //nolint:errcheck // it was read from
	info, err := have.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o111 != 0o111 || info.Size() != wanted.Size() {
		return false, nil //nolint:nilerr // it is made anew
	}
	// Piece by piece: a program is large beside what an agent takes.
	var a, b [32 << 10]byte
	for {
		n, err := io.ReadFull(want, a[:])
		if n == 0 && errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		if m, _ := io.ReadFull(have, b[:n]); m != n || !bytes.Equal(a[:n], b[:n]) {
			_, err := want.Seek(0, io.SeekStart)
			return false, err
		}
	}
}

// removeTemporary removes what an installer left that was killed.
func removeTemporary(dir string) {
	left, err := filepath.Glob(filepath.Join(dir, temporary+"*.tmp"))
	if err != nil {
		return
	}
	for _, path := range left {
		os.Remove(path) //nolint:errcheck // it harms nobody
	}
}
