// SPDX-License-Identifier: Apache-2.0

// Package image builds the initial filesystems of virtual machines: archives in
// the kernel's newc format that hold programs, the libraries they need, and
// kernel modules with those that they depend on.
package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// File types of newc modes.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
)

// Archive writes a newc archive. Directories are made as they are needed.
// The first error sticks and is returned by Close.
type Archive struct {
	out   *bufio.Writer
	inode uint32
	dirs  map[string]bool
	err   error
}

// NewArchive begins an archive.
func NewArchive(out io.Writer) *Archive {
	return &Archive{out: bufio.NewWriterSize(out, 1<<20), dirs: map[string]bool{".": true, "/": true}}
}

// header writes the header of an entry whose content has size bytes.
func (a *Archive) header(name string, mode uint32, size int64) {
	if a.err != nil {
		return
	}
	if size > 1<<32-1 {
		a.err = fmt.Errorf("%s: %d bytes do not fit into the format", name, size)
		return
	}
	a.inode++
	// magic, inode, mode, uid, gid, links, mtime, size, device major and minor,
	// the device's own major and minor, length of the name with its NUL, checksum
	fields := []uint32{a.inode, mode, 0, 0, 1, 0, uint32(size), 0, 0, 0, 0, uint32(len(name) + 1), 0}
	head := "070701"
	for _, f := range fields {
		head += fmt.Sprintf("%08x", f)
	}
	head += name + "\x00"
	a.write([]byte(head))
	a.pad(len(head))
}

func (a *Archive) write(data []byte) {
	if a.err == nil {
		_, a.err = a.out.Write(data)
	}
}

// pad fills up to a multiple of four after n bytes.
func (a *Archive) pad(n int) { a.write(make([]byte, (4-n%4)%4)) }

// Dir adds a directory, and those above it.
func (a *Archive) Dir(name string) {
	name = path.Clean(name)[1:]
	if name == "" || a.dirs[name] {
		return
	}
	a.Dir(path.Dir("/" + name))
	a.dirs[name] = true
	a.header(name, modeDir|0o755, 0)
}

// Bytes adds a file. name begins with a slash.
func (a *Archive) Bytes(name string, perm uint32, content []byte) {
	a.Dir(path.Dir(name))
	a.header(name[1:], modeFile|perm, int64(len(content)))
	a.write(content)
	a.pad(len(content))
}

// File adds a copy of a file of this machine.
func (a *Archive) File(name string, perm uint32, source string) {
	if a.err != nil {
		return
	}
	content, err := os.ReadFile(source)
	if err != nil {
		a.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	a.Bytes(name, perm, content)
}

// Close ends the archive.
func (a *Archive) Close() error {
	a.header("TRAILER!!!", 0, 0)
	if a.err != nil {
		return a.err
	}
	return a.out.Flush()
}

// Tree adds a directory with everything in it; one that is not there adds
// nothing.
func (a *Archive) Tree(name, source string) error {
	err := filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		below, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		a.File(name+"/"+filepath.ToSlash(below), 0o644, path)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
