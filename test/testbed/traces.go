// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Traces is everything by which a cluster may still be found after it is
// gone.
type Traces struct {
	dir, cgroup string
	// namespaces are inode numbers, as in "net:[4026532000]".
	namespaces map[string]string
	programs   map[ebpf.ProgramID]string
	maps       map[ebpf.MapID]string
	links      map[link.ID]string
}

// Traces takes stock of a running cluster: its namespaces, and the programs,
// maps and links that are pinned.
func (c *Cluster) Traces() (*Traces, error) {
	traces := &Traces{
		dir: c.Dir, cgroup: c.Cgroup,
		namespaces: map[string]string{},
		programs:   map[ebpf.ProgramID]string{},
		maps:       map[ebpf.MapID]string{},
		links:      map[link.ID]string{},
	}
	for _, host := range append(c.Hosts(), c.Switch) {
		err := host.Do(func() error {
			id, err := os.Readlink(threadNetNS)
			traces.namespaces[id] = host.Name
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	// Not from the mount's root: the kernel pins iterators of its own there.
	for _, node := range c.Nodes {
		err := filepath.WalkDir(node.BPFDir, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // somebody removed the pins before
			}
			if err != nil || entry.IsDir() || entry.Type() == fs.ModeSymlink {
				return err // a link is a record beside the pins, and holds text
			}
			return traces.addPin(path)
		})
		if err != nil {
			return nil, err
		}
	}
	return traces, nil
}

func (t *Traces) addPin(path string) error {
	if pinned, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{}); err == nil {
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); ok {
			t.maps[id] = path
		}
		return nil
	}
	if pinned, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return err
		}
		if id, ok := info.ID(); ok {
			t.programs[id] = path
		}
		return nil
	}
	pinned, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("pin %s is no map, program or link: %w", path, err)
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return err
	}
	t.links[info.ID] = path
	t.programs[info.Program] = path
	return nil
}

// Present lists what of it is still there.
func (t *Traces) Present() []string {
	var found []string
	for _, path := range []string{t.dir, t.cgroup} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			found = append(found, path)
		}
	}
	if mounts, err := mountsBelow(t.dir); err != nil {
		found = append(found, err.Error())
	} else {
		found = append(found, mounts...)
	}
	found = append(found, t.processes()...)
	for id, path := range t.maps {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			found = append(found, fmt.Sprintf("map %d of %s", id, path))
		}
	}
	for id, path := range t.programs {
		if p, err := ebpf.NewProgramFromID(id); err == nil {
			p.Close()
			found = append(found, fmt.Sprintf("program %d of %s", id, path))
		}
	}
	for id, path := range t.links {
		if l, err := link.NewFromID(id); err == nil {
			l.Close()
			found = append(found, fmt.Sprintf("link %d of %s", id, path))
		}
	}
	return found
}

// processes lists those in the cluster's namespaces.
func (t *Traces) processes() []string {
	var found []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return []string{err.Error()}
	}
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		ns, err := os.Readlink(filepath.Join("/proc", entry.Name(), "ns/net"))
		if err != nil {
			continue // Just gone.
		}
		if host, ok := t.namespaces[ns]; ok {
			command, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
			found = append(found, fmt.Sprintf("process %s on %s: %s", entry.Name(), host, strings.ReplaceAll(string(command), "\x00", " ")))
		}
	}
	return found
}
