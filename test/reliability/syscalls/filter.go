// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data; arguments are 8 bytes, the lower half first on
// the machines we test on.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// auditArch names the architecture in struct seccomp_data.
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[runtime.GOARCH]

// bpfChanges are the commands of bpf(2) that change something. A program that is
// run may: entries of flows are moved by one.
var bpfChanges = map[uint32]string{
	unix.BPF_MAP_CREATE:                  "MAP_CREATE",
	unix.BPF_MAP_UPDATE_ELEM:             "MAP_UPDATE_ELEM",
	unix.BPF_MAP_DELETE_ELEM:             "MAP_DELETE_ELEM",
	unix.BPF_PROG_LOAD:                   "PROG_LOAD",
	unix.BPF_OBJ_PIN:                     "OBJ_PIN",
	unix.BPF_PROG_ATTACH:                 "PROG_ATTACH",
	unix.BPF_PROG_DETACH:                 "PROG_DETACH",
	unix.BPF_PROG_TEST_RUN:               "PROG_TEST_RUN",
	unix.BPF_MAP_LOOKUP_AND_DELETE_ELEM:  "MAP_LOOKUP_AND_DELETE_ELEM",
	unix.BPF_MAP_FREEZE:                  "MAP_FREEZE",
	unix.BPF_MAP_LOOKUP_AND_DELETE_BATCH: "MAP_LOOKUP_AND_DELETE_BATCH",
	unix.BPF_MAP_UPDATE_BATCH:            "MAP_UPDATE_BATCH",
	unix.BPF_MAP_DELETE_BATCH:            "MAP_DELETE_BATCH",
	unix.BPF_LINK_CREATE:                 "LINK_CREATE",
	unix.BPF_LINK_UPDATE:                 "LINK_UPDATE",
	unix.BPF_LINK_DETACH:                 "LINK_DETACH",
	unix.BPF_PROG_BIND_MAP:               "PROG_BIND_MAP",
}

// always are calls that are always looked at.
var always = map[uint32]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_RENAMEAT: "renameat",
	unix.SYS_RENAMEAT2: "renameat2", unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_SENDTO: "sendto",
}

const creating = unix.O_CREAT | unix.O_TRUNC

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func jump(code uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: code, Jt: yes, Jf: no, K: k}
}

// program is the filter: calls to look at are notified, all others allowed.
func program() []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bits   = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		answer = unix.BPF_RET | unix.BPF_K
	)
	allow, notify := statement(answer, unix.SECCOMP_RET_ALLOW), statement(answer, unix.SECCOMP_RET_USER_NOTIF)
	filter := []unix.SockFilter{
		statement(load, offsetArch), jump(equal, auditArch, 1, 0), allow,
		statement(load, offsetNr),
	}
	for _, nr := range sorted(always) {
		filter = append(filter, jump(equal, nr, 0, 1), notify)
	}
	filter = append(filter,
		jump(equal, unix.SYS_OPENAT, 0, 4),
		statement(load, offsetArgs+2*8), jump(bits, creating, 0, 1), notify, allow,
		jump(equal, unix.SYS_BPF, 1, 0), allow,
		statement(load, offsetArgs))
	for _, cmd := range sorted(bpfChanges) {
		filter = append(filter, jump(equal, cmd, 0, 1), notify)
	}
	return append(filter, allow)
}

func sorted(m map[uint32]string) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// install sets the filter on the calling thread and returns the listener. The
// thread's exec takes the filter along.
func install() (int, error) {
	if auditArch == 0 {
		return 0, errors.New("no seccomp filter for " + runtime.GOARCH)
	}
	filter := program()
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Wait killable: a signal, and the Go runtime sends many, does not make the
	// kernel start the call anew once the supervisor has heard of it; it would be
	// counted twice.
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return 0, fmt.Errorf("install seccomp filter: %w", errno)
	}
	return int(fd), nil
}
