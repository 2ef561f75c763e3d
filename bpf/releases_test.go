// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var writeLayoutsOf = flag.String("write-layouts", "", "write layouts.txt of this directory of objects anew")

// packedObjects reads the objects of a directory of compressed ones.
func packedObjects(t testing.TB, dir string) []object {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.o.gz"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no objects in %s: %v", dir, err)
	}
	var list []object
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		elf, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		list = append(list, object{strings.TrimSuffix(filepath.Base(path), ".o.gz"), elf})
	}
	return list
}

// releases are the directories of releases before this one.
func releases(t testing.TB) []string {
	t.Helper()
	dirs, err := filepath.Glob("releases/v*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no releases: %v", err)
	}
	return dirs
}

// TestReleasesLayouts compares what is written down of each release with its
// objects.
func TestReleasesLayouts(t *testing.T) {
	for _, dir := range releases(t) {
		have, err := describeLayouts(packedObjects(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "layouts.txt")
		if *writeLayoutsOf == filepath.Base(dir) {
			if err := os.WriteFile(path, []byte(have.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if have.String() != string(want) {
			t.Errorf("%s is not of the objects beside it; write it anew by -write-layouts %s", path, filepath.Base(dir))
		}
		parsed, err := ParseLayouts(string(want))
		if err != nil || parsed.String() != string(want) {
			t.Errorf("%s is read as something else: %v", path, err)
		}
	}
}
