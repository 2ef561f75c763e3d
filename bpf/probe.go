// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// Feature is something a kernel may or may not have.
type Feature struct {
	Name     string
	Required bool   // without it the dataplane does not run
	Fallback string // what happens without it, when not required
	Err      error  // nil: present
}

// Present tells whether the kernel has it.
func (f Feature) Present() bool { return f.Err == nil }

// String is, for instance, "tcx: no (clsact filters)".
func (f Feature) String() string {
	switch {
	case f.Present():
		return f.Name + ": yes"
	case f.Required:
		return f.Name + ": no, required: " + f.Err.Error()
	}
	return fmt.Sprintf("%s: no (%s)", f.Name, f.Fallback)
}

// Probe asks the kernel for everything that the programs use, by trial and
// never by version.
func Probe() []Feature {
	sockAddr := func(fn asm.BuiltinFunc) error { return features.HaveProgramHelper(ebpf.CGroupSockAddr, fn) }
	tc := func(fn asm.BuiltinFunc) error { return features.HaveProgramHelper(ebpf.SchedCLS, fn) }
	return []Feature{
		{Name: "map types: LRU hash, LPM trie, array of maps, socket storage", Required: true, Err: errors.Join(
			features.HaveMapType(ebpf.LRUHash), features.HaveMapType(ebpf.LPMTrie),
			features.HaveMapType(ebpf.ArrayOfMaps), features.HaveMapType(ebpf.SkStorage))},
		{Name: "bounded loops", Required: true, Err: features.HaveBoundedLoops()},
		{Name: "instruction set v3", Required: true, Err: features.HaveV3ISA()},
		{Name: "programs of 1 M instructions", Required: true, Err: features.HaveLargeInstructions()},
		{Name: "socket storage at socket hooks", Required: true, Err: sockAddr(asm.FnSkStorageGet)},
		{Name: "socket lookup at socket hooks", Required: true, Err: errors.Join(
			sockAddr(asm.FnSkLookupTcp), sockAddr(asm.FnSkLookupUdp))},
		{Name: "netns cookie at socket hooks", Required: true, Err: sockAddr(asm.FnGetNetnsCookie)},
		{Name: "sock_release hook", Required: true, Err: features.HaveProgramHelper(ebpf.CGroupSock, asm.FnGetSocketCookie)},
		{Name: "getpeername hook", Required: true, Err: haveSockAddrHook(ebpf.AttachCgroupInet4GetPeername)},
		{Name: "fib_lookup", Required: true, Err: tc(asm.FnFibLookup)},
		{Name: "redirect_peer", Required: true, Err: tc(asm.FnRedirectPeer)},
		{Name: "bpf_set_retval", Err: haveSetRetval(), Fallback: "refused connections are answered by packets"},
		{Name: "bpf_skc_to_mptcp_sock", Err: haveMPTCPSock(), Fallback: "MPTCP clients leave entries behind, until there are too many"},
		{Name: "tcx", Err: haveTCX(), Fallback: "clsact filters"},
		{Name: "batch operations", Err: haveBatch(), Fallback: "one system call an element"},
	}
}

// loadSockAddr tries a program at a socket hook.
func loadSockAddr(hook ebpf.AttachType, insns asm.Instructions) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: hook, License: "Dual BSD/GPL",
		Instructions: insns})
	if err != nil {
		return err
	}
	return p.Close()
}

func haveSockAddrHook(hook ebpf.AttachType) error {
	return loadSockAddr(hook, asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()})
}

// haveSetRetval tries bpf_set_retval where the connect programs call it.
var haveSetRetval = sync.OnceValue(func() error {
	return loadSockAddr(ebpf.AttachCGroupInet4Connect, asm.Instructions{
		asm.Mov.Imm(asm.R1, -int32(unix.ECONNREFUSED)),
		asm.FnSetRetval.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	})
})

// haveMPTCPSock tries bpf_skc_to_mptcp_sock where the connect programs call it.
var haveMPTCPSock = sync.OnceValue(func() error {
	return loadSockAddr(ebpf.AttachCGroupInet4Connect, asm.Instructions{
		asm.LoadMem(asm.R1, asm.R1, sockAddrSk, asm.DWord),
		asm.JNE.Imm(asm.R1, 0, "sk"),
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
		asm.FnSkcToMptcpSock.Call().WithSymbol("sk"),
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
	})
})

// sockAddrSk is the offset of sk in struct bpf_sock_addr.
const sockAddrSk = 64

// haveTCX tries whether the kernel knows tcx links: on a device that cannot
// exist it then says so, and not that the call is unknown.
var haveTCX = sync.OnceValue(func() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		return err
	}
	defer p.Close()
	return tcxKnown(p)
})

// haveBatch tries a batch update of an array.
var haveBatch = sync.OnceValue(func() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 2})
	if err != nil {
		return err
	}
	defer m.Close()
	_, err = m.BatchUpdate([]uint32{0, 1}, []uint32{1, 1}, nil)
	return err
})
