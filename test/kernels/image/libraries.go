// SPDX-License-Identifier: Apache-2.0

package image

import (
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// libraryDirs are where Debian keeps shared libraries.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// Program adds a program of this machine and the shared libraries and the loader
// that it needs. In the guest libraries are in /lib.
func (a *Archive) Program(name, source string) {
	if a.err != nil {
		return
	}
	libraries := map[string]string{}
	loader, err := needs(source, libraries)
	if err != nil {
		a.err = fmt.Errorf("%s: %w", name, err)
		return
	}
	a.File(name, 0o755, source)
	for _, library := range slices.Sorted(maps.Keys(libraries)) {
		a.once("/lib/"+library, libraries[library])
	}
	if loader != "" {
		a.once(loader, loader)
	}
}

// once adds a file unless it is there.
func (a *Archive) once(name, source string) {
	if !a.dirs["file "+name] {
		a.dirs["file "+name] = true
		a.File(name, 0o755, source)
	}
}

// needs collects the libraries of a program or library, and its loader.
func needs(path string, libraries map[string]string) (loader string, err error) {
	file, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			text := make([]byte, p.Filesz-1) // without its NUL
			if _, err := p.ReadAt(text, 0); err != nil {
				return "", err
			}
			loader = string(text)
		}
	}
	imported, err := file.ImportedLibraries()
	if err != nil || loader == "" && len(imported) == 0 {
		return loader, err // a static program has none
	}
	for _, name := range imported {
		if libraries[name] != "" {
			continue
		}
		if libraries[name] = findLibrary(name); libraries[name] == "" {
			return "", fmt.Errorf("library %s is in none of %v", name, libraryDirs)
		}
		if _, err := needs(libraries[name], libraries); err != nil {
			return "", err
		}
	}
	return loader, nil
}

func findLibrary(name string) string {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
