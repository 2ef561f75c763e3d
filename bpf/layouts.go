// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	_ "embed" // the layouts of the first release
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// Layouts describe what maps hold: a line of text for each map, by name, with
// its type, flags, and the key's and value's fields with their places. Two maps
// hold the same if their lines are equal; how many entries fit does not count.
type Layouts map[string]string

// digest is the short name of one map's layout.
func (l Layouts) digest(name string) string {
	line, ok := l[name]
	if !ok {
		return ""
	}
	sum := sha256.Sum256([]byte(line))
	return hex.EncodeToString(sum[:6])
}

// String is the form of a file: a line for each map.
func (l Layouts) String() string {
	var b strings.Builder
	for _, name := range sortedKeys(l) {
		fmt.Fprintf(&b, "%s: %s\n", name, l[name])
	}
	return b.String()
}

// ParseLayouts reads what String wrote.
func ParseLayouts(text string) (Layouts, error) {
	l := Layouts{}
	for line := range strings.Lines(text) {
		name, layout, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			return nil, fmt.Errorf("layouts: %q must be NAME: LAYOUT", line)
		}
		l[name] = layout
	}
	return l, nil
}

// innerTypes name the key and value of maps that are reached through an array
// of maps: such maps are declared by their sizes alone.
var innerTypes = map[string][2]string{
	"embryonic_v4": {"ct_key_v4", "ct_entry_v4"}, "embryonic_v6": {"ct_key_v6", "ct_entry_v6"},
	"established_v4": {"ct_key_v4", "ct_entry_v4"}, "established_v6": {"ct_key_v6", "ct_entry_v6"},
}

// describeLayouts describes the shared maps of a set of objects: those that
// every object declares.
func describeLayouts(from []object) (Layouts, error) {
	shared, err := smallest(from).spec()
	if err != nil {
		return nil, err
	}
	// Types of inner maps are where they are used.
	var largest object
	for _, o := range from {
		if len(o.elf) > len(largest.elf) {
			largest = o
		}
	}
	types, err := largest.spec()
	if err != nil {
		return nil, err
	}
	l := Layouts{}
	for name, s := range shared.Maps {
		if isObjectData(name) {
			continue
		}
		kind, flags, key, value := s.Type.String(), s.Flags, s.Key, s.Value
		if s.InnerMap != nil {
			kind, flags = kind+" of "+s.InnerMap.Type.String(), s.InnerMap.Flags
			if key, err = types.Types.AnyTypeByName(innerTypes[name][0]); err != nil {
				return nil, fmt.Errorf("key of %s: %w", name, err)
			}
			if value, err = types.Types.AnyTypeByName(innerTypes[name][1]); err != nil {
				return nil, fmt.Errorf("value of %s: %w", name, err)
			}
		}
		l[name] = fmt.Sprintf("%s, flags %#x, key %s, value %s", kind, flags, describeType(key), describeType(value))
	}
	return l, nil
}

// describeType writes a type in one line, fields with their offsets.
func describeType(t btf.Type) string {
	switch t := t.(type) {
	case nil:
		return "none"
	case *btf.Typedef:
		return t.Name
	case *btf.Int:
		return t.Name
	case *btf.Enum:
		return fmt.Sprintf("enum %s of %d bytes", t.Name, t.Size)
	case *btf.Array:
		return fmt.Sprintf("%s[%d]", describeType(t.Type), t.Nelems)
	case *btf.Const:
		return describeType(t.Type)
	case *btf.Volatile:
		return describeType(t.Type)
	case *btf.Struct:
		var fields []string
		for _, m := range t.Members {
			fields = append(fields, fmt.Sprintf("%d %s %s", m.Offset.Bytes(), describeType(m.Type), m.Name))
		}
		return fmt.Sprintf("{%s} of %d", strings.Join(fields, "; "), t.Size)
	}
	return fmt.Sprintf("%T", t) // no map has others
}

// Beside the pins of maps stands a record of their layouts, since the kernel
// tells only who has CAP_SYS_ADMIN. It is a symbolic link as the record of
// programs is, written when a map was created.
const layoutsRecord = "layouts"

// writeLayouts writes the record of the maps directory.
func (d *Dataplane) writeLayouts() error {
	text := []string{recordVersion, "objects=" + d.describedDigest, fmt.Sprintf("turn=%d", d.turn)}
	for _, name := range sortedKeys(d.layouts) {
		text = append(text, name+"="+d.layouts.digest(name))
	}
	want := strings.Join(text, " ")
	path := d.mapPin(layoutsRecord)
	if have, err := os.Readlink(path); err == nil && have == want {
		return nil
	}
	if err := replacePin(path, func(path string) error { return os.Symlink(want, path) }); err != nil {
		return fmt.Errorf("write record of layouts: %w", err)
	}
	return nil
}

// layoutsAreOfObjects tells whether the record was written by an agent with the
// same objects: then nothing has to be compared.
func (d *Dataplane) layoutsAreOfObjects(dir string) bool {
	text, err := os.Readlink(filepath.Join(dir, layoutsRecord))
	return err == nil && strings.HasPrefix(text, recordVersion+" objects="+d.describedDigest+" ")
}

// objectsDigest is of the bytes of all objects.
func objectsDigest(list []object) string {
	h := sha256.New()
	for _, o := range list {
		fmt.Fprintf(h, "object %s %d\n", o.name, len(o.elf))
		h.Write(o.elf)
	}
	return hex.EncodeToString(h.Sum(nil))
}

//go:embed releases/v0.1.0/layouts.txt
var firstLayouts string

// readLayouts returns the digests of the layouts of the maps that are pinned in
// a directory, by name. The first release wrote no record.
func readLayouts(dir string) (map[string]string, error) {
	digests := map[string]string{}
	text, err := os.Readlink(filepath.Join(dir, layoutsRecord))
	if errors.Is(err, os.ErrNotExist) {
		first, err := ParseLayouts(firstLayouts)
		for name := range first {
			digests[name] = first.digest(name)
		}
		return digests, err
	}
	if err != nil {
		return nil, fmt.Errorf("read record of layouts: %w", err)
	}
	fields := strings.Fields(text)
	if len(fields) == 0 || fields[0] != recordVersion {
		return digests, nil // unknown all of them
	}
	for _, f := range fields[1:] {
		name, digest, _ := strings.Cut(f, "=")
		digests[name] = digest
	}
	return digests, nil
}

// readTurn returns the turn of the generation whose maps are pinned in a
// directory, see [Dataplane.SNATPorts].
func readTurn(dir string) int {
	text, _ := os.Readlink(filepath.Join(dir, layoutsRecord)) // without one: the first
	if slices.Contains(strings.Fields(text), "turn=1") {
		return 1
	}
	return 0
}

// layoutOf is the name under which a pinned map's layout stands: inner maps have
// that of the map through which they are reached.
func layoutOf(pin string) string {
	name, _, _ := strings.Cut(pin, "-")
	return name
}

// sameLayout tells whether a pinned map, if it is there, is what spec wants.
func (d *Dataplane) sameLayout(name string, spec *ebpf.MapSpec, have map[string]string) (bool, error) {
	m, err := ebpf.LoadPinnedMap(d.mapPin(name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	defer m.Close()
	return compatible(spec, m) == nil && have[name] == d.layouts.digest(name), nil
}
