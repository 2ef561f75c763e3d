// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var writeRelease = flag.String("release", "", "keep the present objects and layouts as this release's")

// keepRelease writes the present objects and their layouts to a directory.
func keepRelease(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		var packed bytes.Buffer
		z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(o.elf); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, o.name+".o.gz"), packed.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := describeLayouts(objects)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "layouts.txt"), []byte(l.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

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
	if *writeRelease != "" {
		keepRelease(t, filepath.Join("releases", *writeRelease))
	}
	for _, dir := range releases(t) {
		have, err := describeLayouts(packedObjects(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "layouts.txt")
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if have.String() != string(want) {
			t.Errorf("%s does not describe the objects beside it", path)
		}
		parsed, err := ParseLayouts(string(want))
		if err != nil || parsed.String() != string(want) {
			t.Errorf("%s is read as something else: %v", path, err)
		}
	}
}
