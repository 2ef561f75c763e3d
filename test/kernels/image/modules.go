// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is a kernel module.
type Module struct {
	Name    string
	Content []byte // the unpacked object
}

// Modules reads the named modules below a directory and all that they depend
// on, each after those. Names that are compiled into the kernel, by its list
// modules.builtin, need nothing.
func Modules(dir string, names []string) ([]Module, error) {
	s := &moduleSet{paths: map[string]string{}, builtin: map[string]bool{}, done: map[string]bool{}}
	if err := filepath.WalkDir(dir, s.see); err != nil {
		return nil, fmt.Errorf("list modules: %w", err)
	}
	for _, name := range names {
		if err := s.add(name); err != nil {
			return nil, err
		}
	}
	return s.list, nil
}

type moduleSet struct {
	paths   map[string]string
	builtin map[string]bool
	done    map[string]bool
	list    []Module
}

// moduleName is the name of a module's file: dashes and underscores are the
// same in names, and in files either may stand.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func (s *moduleSet) see(path string, _ fs.DirEntry, err error) error {
	switch {
	case err != nil:
		return err
	case filepath.Base(path) == "modules.builtin":
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, line := range strings.Fields(string(text)) {
			s.builtin[moduleName(line)] = true
		}
	case strings.Contains(filepath.Base(path), ".ko"):
		s.paths[moduleName(path)] = path
	}
	return nil
}

func (s *moduleSet) add(name string) error {
	name = moduleName(name)
	if s.done[name] || s.builtin[name] {
		return nil
	}
	s.done[name] = true
	path, ok := s.paths[name]
	if !ok {
		return fmt.Errorf("the kernel has no module %s", name)
	}
	content, err := unpack(path)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	needs, err := dependencies(content)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, other := range needs {
		if err := s.add(other); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	s.list = append(s.list, Module{Name: name, Content: content})
	return nil
}

func unpack(path string) ([]byte, error) {
	if strings.HasSuffix(path, ".ko") {
		return os.ReadFile(path)
	}
	if !strings.HasSuffix(path, ".xz") {
		return nil, fmt.Errorf("%s is neither plain nor packed by xz", filepath.Base(path))
	}
	out, err := exec.Command("xz", "--decompress", "--stdout", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", filepath.Base(path), err)
	}
	return out, nil
}

// dependencies are the modules that a module says it needs. Some ask for others
// while they start, by what the kernel calls a soft dependency: libcrc32c for an
// implementation of crc32c.
func dependencies(content []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for _, entry := range strings.Split(string(info), "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for _, name := range strings.Split(value, ",") {
				if name != "" {
					needs = append(needs, name)
				}
			}
		case "softdep":
			if value == "pre: crc32c" {
				needs = append(needs, "crc32c_generic")
			}
		}
	}
	return needs, nil
}
