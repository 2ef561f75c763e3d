// SPDX-License-Identifier: Apache-2.0

package leaks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"

	"github.com/millrace-project/millrace/test/testbed"
)

// inventory is what there is of an agent, in numbers.
type inventory struct {
	// In the kernel: what uses the agent's maps, whether pinned or not.
	programs, maps, links int
	// On the node's devices, for kernels that attach to qdiscs.
	filters, qdiscs int
	// Files under the agent's directory on the BPF file system, and bytes of
	// its log.
	pins     int
	logBytes int64
	// Entries of the maps that hold flows, ids, and everything else.
	flows, ids, entries uint32
	// Of the agent's process.
	files, threads int
}

// String names every number.
func (i inventory) String() string {
	var text []string
	for _, part := range i.parts() {
		text = append(text, fmt.Sprintf("%s %d", part.name, part.number))
	}
	return strings.Join(text, ", ")
}

type part struct {
	name   string
	number int64
	// most is how many more than before are not a leak.
	most int64
}

const (
	// Go keeps the threads that system calls once blocked, and starts others
	// when the machine is busy.
	spareThreads = 6
	// A log shrinks only when it is worth it.
	spareLog = 1 << 20
)

func (i inventory) parts() []part {
	return []part{
		{"programs", int64(i.programs), 0}, {"maps", int64(i.maps), 0}, {"links", int64(i.links), 0},
		{"tc filters", int64(i.filters), 0}, {"clsact qdiscs", int64(i.qdiscs), 0},
		{"pinned files", int64(i.pins), 0}, {"bytes of log", i.logBytes, spareLog},
		{"flows", int64(i.flows), 0}, {"ids", int64(i.ids), 0}, {"other entries", int64(i.entries), 0},
		{"open files", int64(i.files), 0}, {"threads", int64(i.threads), spareThreads},
	}
}

// exceeds tells what there is more of than before.
func (i inventory) exceeds(before inventory) error {
	var all []error
	earlier := before.parts()
	for n, now := range i.parts() {
		if now.number > earlier[n].number+now.most {
			all = append(all, fmt.Errorf("%s: %d, before %d", now.name, now.number, earlier[n].number))
		}
	}
	return errors.Join(all...)
}

// taker takes inventories of one agent.
type taker struct {
	agent *testbed.Agent
	// own are the maps that the agent had at any time: a program that uses
	// one of them is the agent's, whatever became of its pin.
	own map[ebpf.MapID]bool
}

func (t *taker) take(ctx context.Context) (inventory, error) {
	var i inventory
	for _, count := range []func(*inventory) error{
		t.countPins, t.countKernel, t.countDevices, t.countProcess, t.countLog,
		func(i *inventory) error { return t.countEntries(ctx, i) },
	} {
		if err := count(&i); err != nil {
			return i, err
		}
	}
	return i, nil
}

// takeKernel is take without an agent that runs.
func (t *taker) takeKernel() (inventory, error) {
	var i inventory
	for _, count := range []func(*inventory) error{t.countPins, t.countKernel, t.countDevices} {
		if err := count(&i); err != nil {
			return i, err
		}
	}
	return i, nil
}

func (t *taker) countPins(i *inventory) error {
	return filepath.WalkDir(t.agent.Node.BPFDir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		i.pins++
		pinned, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			return nil // a program or a link
		}
		defer pinned.Close()
		info, err := pinned.Info()
		if err != nil {
			return fmt.Errorf("ask about %s: %w", path, err)
		}
		if id, ok := info.ID(); ok {
			t.own[id] = true
		}
		return nil
	})
}

// countKernel goes through everything that the kernel has: others work on this
// machine too.
func (t *taker) countKernel(i *inventory) error {
	if err := t.ownMapsOfProcess(); err != nil {
		return err
	}
	programs := map[ebpf.ProgramID]bool{}
	maps := map[ebpf.MapID]bool{}
	for id, err := ebpf.ProgramGetNextID(0); ; id, err = ebpf.ProgramGetNextID(id) {
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("list programs: %w", err)
		}
		used := mapsOf(id)
		if !slices.ContainsFunc(used, func(m ebpf.MapID) bool { return t.own[m] }) {
			continue
		}
		programs[id] = true
		for _, m := range used {
			maps[m] = true
		}
	}
	for id := range t.own {
		if m, err := ebpf.NewMapFromID(id); err == nil {
			m.Close()
			maps[id] = true
		}
	}
	links := link.Iterator{}
	defer links.Close()
	for links.Next() {
		// One that has just gone is none.
		if info, err := links.Link.Info(); err == nil && programs[info.Program] {
			i.links++
		}
	}
	if err := links.Err(); err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	i.programs, i.maps = len(programs), len(maps)
	return nil
}

// mapsOf are the maps a program uses; none if it has just gone.
func mapsOf(id ebpf.ProgramID) []ebpf.MapID {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil
	}
	maps, _ := info.MapIDs()
	return maps
}

// ownMapsOfProcess adds the maps that the agent has open.
func (t *taker) ownMapsOfProcess() error {
	dir := fmt.Sprintf("/proc/%d/fdinfo", t.agent.Process.PID())
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it does not run
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(text)) {
			if number, ok := strings.CutPrefix(line, "map_id:"); ok {
				id, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
				if err != nil {
					return fmt.Errorf("%s: %w", dir, err)
				}
				t.own[ebpf.MapID(id)] = true
			}
		}
	}
	return nil
}

func (t *taker) countDevices(i *inventory) error {
	return t.agent.Node.Do(func() error {
		devices, err := netlink.LinkList()
		if err != nil {
			return fmt.Errorf("list devices: %w", err)
		}
		for _, device := range devices {
			qdiscs, err := netlink.QdiscList(device)
			if err != nil {
				return fmt.Errorf("list qdiscs of %s: %w", device.Attrs().Name, err)
			}
			for _, qdisc := range qdiscs {
				if qdisc.Type() == "clsact" {
					i.qdiscs++
				}
			}
			for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
				filters, err := netlink.FilterList(device, parent)
				if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("list filters of %s: %w", device.Attrs().Name, err)
				}
				i.filters += len(filters)
			}
		}
		return nil
	})
}

func (t *taker) countProcess(i *inventory) error {
	for _, count := range []struct {
		dir    string
		number *int
	}{{"fd", &i.files}, {"task", &i.threads}} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", t.agent.Process.PID(), count.dir))
		if err != nil {
			return err
		}
		*count.number = len(entries)
	}
	return nil
}

func (t *taker) countLog(i *inventory) error {
	return filepath.WalkDir(t.agent.Node.StateDir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			i.logBytes += info.Size()
		}
		return err
	})
}

// timeless are maps whose entries do not say what exists: arrays, and what
// counters and sockets remember, which the kernel frees by itself.
var timeless = []string{"backends_", "connected_", "sockets_", "counters", "scratch"}

func (t *taker) countEntries(ctx context.Context, i *inventory) error {
	answer, err := t.agent.ListMaps(ctx, &agentv1.ListMapsRequest{})
	if err != nil {
		return fmt.Errorf("list maps: %w", err)
	}
	for _, state := range answer.GetMaps() {
		name := state.GetName()
		has := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		switch {
		case has("embryonic"), has("established"), has("fragments"):
			i.flows += state.GetEntries()
		case name == "ids":
			i.ids += state.GetEntries()
		case !slices.ContainsFunc(timeless, has):
			i.entries += state.GetEntries()
		}
	}
	return nil
}

// memory is the agent's anonymous memory in use, in KiB: what its heap and
// stacks take.
func memory(agent *testbed.Agent) (int64, error) {
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", agent.Process.PID()))
	if err != nil {
		return 0, err
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		}
	}
	return 0, errors.New("no RssAnon in the status of the agent's process")
}
