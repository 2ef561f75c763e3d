// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestArchive lets cpio, if it is there, read what Archive wrote; the kernel
// does in any case, in the tests of package kernels.
func TestArchive(t *testing.T) {
	var out bytes.Buffer
	a := NewArchive(&out)
	a.Bytes("/a/b/odd", 0o755, []byte("odd"))
	a.Bytes("/a/b/empty", 0o644, nil)
	a.Dir("/a")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if n := out.Len() % 4; n != 0 {
		t.Errorf("%d bytes too many for entries of whole words", n)
	}
	// Each entry: a header of 110 bytes and its name, filled up to four, and its
	// content, the same.
	var names []string
	for rest := out.Bytes(); len(rest) > 0; {
		if string(rest[:6]) != "070701" {
			t.Fatalf("an entry begins with %q", rest[:6])
		}
		field := func(n int) int {
			var v int
			for _, c := range rest[6+8*n : 14+8*n] {
				v = v<<4 | strings.IndexByte("0123456789abcdef", c)
			}
			return v
		}
		size, nameSize := field(6), field(11)
		names = append(names, string(rest[110:110+nameSize-1]))
		skip := (110 + nameSize + 3) / 4 * 4
		if names[len(names)-1] == "a/b/odd" {
			if got := string(rest[skip : skip+size]); got != "odd" {
				t.Errorf("content %q", got)
			}
		}
		rest = rest[skip+(size+3)/4*4:]
	}
	if got := strings.Join(names, " "); got != "a a/b a/b/odd a/b/empty TRAILER!!!" {
		t.Errorf("entries: %s", got)
	}
}

func TestArchiveKeepsItsFirstError(t *testing.T) {
	a := NewArchive(&bytes.Buffer{})
	a.File("/missing", 0o644, filepath.Join(t.TempDir(), "nothing"))
	a.Bytes("/there", 0o644, nil)
	if err := a.Close(); err == nil || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("got %v", err)
	}
}

// TestProgram packs a program of this machine with its libraries.
func TestProgram(t *testing.T) {
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft, a program with many libraries, is not installed")
	}
	var out bytes.Buffer
	a := NewArchive(&out)
	a.Program("/bin/nft", path)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin/nft\x00", "lib/libc.so.6\x00", "lib/libnftables.so.1\x00", "lib/libmnl.so.0\x00"} {
		if n := bytes.Count(out.Bytes(), []byte("\x00"+name)) + bytes.Count(out.Bytes(), []byte("0"+name)); n == 0 {
			t.Errorf("%q is not in the archive", name)
		}
	}
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/net/core/there-already.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := Modules(dir, []string{"there_already"})
	if err != nil || len(list) != 0 {
		t.Errorf("a module that is built in: %v, %v", list, err)
	}
	if _, err := Modules(dir, []string{"veth"}); err == nil || !strings.Contains(err.Error(), "veth") {
		t.Errorf("a module that is not there: %v", err)
	}
}
