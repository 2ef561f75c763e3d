// SPDX-License-Identifier: Apache-2.0

package dir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/millrace-project/millrace/calc/model"
	"github.com/millrace-project/millrace/services/calculator/internal/source"
)

// maxFile bounds what is read of one file, so that a file which is not a
// manifest cannot exhaust memory.
const maxFile = 256 << 20

// errChanging tells that a file changed while it was read.
var errChanging = errors.New("the file is being changed")

// readWhole reads a file as it was at one moment.
func readWhole(path string) ([]byte, stamp, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stamp{}, fmt.Errorf("could not be opened: %w", err)
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, stamp{}, fmt.Errorf("could not be read: %w", err)
	}
	if !before.Mode().IsRegular() {
		return nil, stamp{}, fmt.Errorf("is no regular file but %s", before.Mode().Type())
	}
	if before.Size() > maxFile {
		return nil, stamp{}, fmt.Errorf("has %d bytes, at most %d are read", before.Size(), maxFile)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, stamp{}, fmt.Errorf("could not be read: %w", err)
	}
	after, err := os.Stat(path)
	if err != nil || stampOf(after) != stampOf(before) || int64(len(content)) != before.Size() {
		return nil, stamp{}, errChanging
	}
	return content, stampOf(before), nil
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), modified: info.ModTime()}
	if system, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = system.Ino
	}
	return s
}

// documentKeyOf is the object that problems with a whole file are about.
func documentKeyOf(path string) model.Key {
	return model.Key{Kind: source.KindFile, Name: path}
}
