// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Call is a counted call, which waits for its verdict.
type Call struct {
	// Number counts the calls since the rule was set, from 1.
	Number int
	// Name of the call, for bpf(2) the command: "write", "MAP_UPDATE_BATCH".
	Name string
	// Path of the file that it is about, or of the pin.
	Path string
	// Map that the call changes, by its name in the kernel (15 bytes at most).
	Map string
	// Keys are the keys that it changes in Map.
	Keys []byte
	// Attach is the kind of the link that LINK_CREATE makes, Target the number of
	// the device, or of the descriptor, that it makes it to.
	Attach ebpf.AttachType
	Target int
}

// String is, for instance, "MAP_UPDATE_BATCH frontends_v4" or "write state.log".
func (c *Call) String() string {
	switch {
	case c.Map != "":
		return c.Name + " " + c.Map
	case c.Path != "":
		return c.Name + " " + filepath.Base(c.Path)
	case c.Name == "LINK_CREATE":
		return c.Name + " " + c.Attach.String()
	}
	return c.Name
}

// Changes tells whether the call writes to or deletes from a map.
func (c *Call) Changes(mapName string) bool {
	return c.Map == mapName && strings.HasPrefix(c.Name, "MAP_")
}

// Touches tells whether one of the changed keys holds the bytes.
func (c *Call) Touches(key []byte) bool { return bytes.Contains(c.Keys, key) }

// describe tells what a call is about, nil for one that is not counted.
func (p *process) describe(n *notification) *Call {
	nr := uint32(n.nr)
	fd := int(int32(n.args[0]))
	switch nr {
	case unix.SYS_BPF:
		return p.describeBPF(uint32(n.args[0]), n.args[1], int(n.args[2]))
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_FTRUNCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if fd <= 2 {
			return nil
		}
		path := p.pathOf(fd)
		if !strings.HasPrefix(path, "/") {
			return nil // a socket, a pipe or an event counter
		}
		return &Call{Name: always[nr], Path: path}
	case unix.SYS_OPENAT:
		return &Call{Name: "openat", Path: p.stringAt(n.args[1])}
	case unix.SYS_MKDIRAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		return &Call{Name: always[nr], Path: p.stringAt(n.args[1])}
	case unix.SYS_SYMLINKAT:
		return &Call{Name: always[nr], Path: p.stringAt(n.args[2])}
	case unix.SYS_SENDTO:
		return p.describeSend(fd, n.args[1], n.args[2])
	}
	return &Call{Name: fmt.Sprint("call ", nr)}
}

// describeSend names what a request to rtnetlink changes.
func (p *process) describeSend(fd int, data, length uint64) *Call {
	if length < unix.SizeofNlMsghdr {
		return nil
	}
	own, err := unix.PidfdGetfd(p.pidfd, fd, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(own)
	domain, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return nil
	}
	protocol, err := unix.GetsockoptInt(own, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.NETLINK_ROUTE {
		return nil
	}
	header := p.memory(data, unix.SizeofNlMsghdr)
	if header == nil {
		return nil
	}
	kind := binary.NativeEndian.Uint16(header[4:])
	if kind < unix.RTM_BASE || (kind-unix.RTM_BASE)%4 == 2 {
		return nil // asks only
	}
	names := map[uint16]string{
		unix.RTM_NEWQDISC: "RTM_NEWQDISC", unix.RTM_NEWTFILTER: "RTM_NEWTFILTER", unix.RTM_DELTFILTER: "RTM_DELTFILTER",
	}
	if name, ok := names[kind]; ok {
		return &Call{Name: name}
	}
	return &Call{Name: fmt.Sprint("rtnetlink ", kind)}
}

// Offsets in union bpf_attr.
const (
	attrMapFD      = 0  // of commands for elements
	attrKey        = 8  // of commands for elements
	attrBatchKeys  = 16 // of commands for batches
	attrBatchCount = 32
	attrBatchFD    = 36
	attrTarget     = 4 // of LINK_CREATE
	attrAttachType = 8 // of LINK_CREATE
	attrPath       = 0 // of OBJ_PIN
)

func (p *process) describeBPF(cmd uint32, at uint64, size int) *Call {
	call := &Call{Name: bpfChanges[cmd]}
	attr := make([]byte, 64)
	copy(attr, p.memory(at, min(size, len(attr))))
	u32 := func(offset int) uint32 { return binary.NativeEndian.Uint32(attr[offset:]) }
	u64 := func(offset int) uint64 { return binary.NativeEndian.Uint64(attr[offset:]) }
	switch cmd {
	case unix.BPF_OBJ_PIN:
		call.Path = p.stringAt(u64(attrPath))
	case unix.BPF_LINK_CREATE:
		call.Attach, call.Target = ebpf.AttachType(u32(attrAttachType)), int(u32(attrTarget))
	case unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM:
		p.describeMap(call, int(u32(attrMapFD)), u64(attrKey), 1)
	case unix.BPF_MAP_UPDATE_BATCH, unix.BPF_MAP_DELETE_BATCH, unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH:
		p.describeMap(call, int(u32(attrBatchFD)), u64(attrBatchKeys), int(u32(attrBatchCount)))
	}
	return call
}

// describeMap names the map and reads the keys.
func (p *process) describeMap(call *Call, fd int, keys uint64, count int) {
	own, err := unix.PidfdGetfd(p.pidfd, fd, 0)
	if err != nil {
		return
	}
	m, err := ebpf.NewMapFromFD(own) // takes own over
	if err != nil {
		return
	}
	defer m.Close()
	if info, err := m.Info(); err == nil {
		call.Map = info.Name
	}
	call.Keys = p.memory(keys, min(count, 1<<16)*int(m.KeySize()))
}

// pathOf is what a descriptor of the process refers to.
func (p *process) pathOf(fd int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, fd))
	if err != nil {
		return ""
	}
	return path
}

// memory reads the process's memory, nil if it cannot be read.
func (p *process) memory(at uint64, length int) []byte {
	if length == 0 {
		return nil
	}
	data := make([]byte, length)
	local := []unix.Iovec{{Base: &data[0]}}
	local[0].SetLen(length)
	n, err := unix.ProcessVMReadv(p.pid, local, []unix.RemoteIovec{{Base: uintptr(at), Len: length}}, 0)
	if err != nil || n != length {
		return nil
	}
	return data
}

// stringAt reads a string that ends in a zero byte.
func (p *process) stringAt(at uint64) string {
	var text []byte
	for len(text) < unix.PathMax {
		// Not across a page's end: the next one may not be there.
		part := p.memory(at, int(4096-at%4096))
		if part == nil {
			break
		}
		if end := bytes.IndexByte(part, 0); end >= 0 {
			return string(append(text, part[:end]...))
		}
		text, at = append(text, part...), at+uint64(len(part))
	}
	return string(text)
}
