// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Feature is something a kernel may or may not have.
type Feature struct {
	Name     string
	Key      string // of one that can be left unused, see [Options.LeaveUnused]
	Required bool   // without it the dataplane does not run
	Fallback string // what happens without it, when not required
	Err      error  // nil: present
	Unused   bool   // present, but an option says to do without
}

// Present tells whether the kernel has it.
func (f Feature) Present() bool { return f.Err == nil }

// Used tells whether it is made use of.
func (f Feature) Used() bool { return f.Present() && !f.Unused }

// Consequence tells what follows where the feature is not used, else nothing.
func (f Feature) Consequence() string {
	switch {
	case f.Used():
		return ""
	case f.Required:
		return "the BPF dataplane does not run"
	}
	return f.Fallback
}

// String is, for instance, "tcx: no (clsact filters)".
func (f Feature) String() string {
	switch {
	case f.Used():
		return f.Name + ": yes"
	case f.Required:
		return f.Name + ": no, required: " + f.Err.Error()
	case f.Unused:
		return fmt.Sprintf("%s: yes, unused (%s)", f.Name, f.Fallback)
	}
	return fmt.Sprintf("%s: no (%s)", f.Name, f.Fallback)
}

// Keys of the features that can be left unused.
const (
	KeyTCX       = "tcx"
	KeySetRetval = "set-retval"
	KeyMPTCPSock = "mptcp-sock"
)

// OptionalKeys are all of them.
func OptionalKeys() []string { return []string{KeyTCX, KeySetRetval, KeyMPTCPSock} }

// LeaveUnused lets the dataplane do without a feature although the kernel has
// it, as on kernels that have not.
func (o *Options) LeaveUnused(key string) error {
	switch key {
	case KeyTCX:
		o.ForceClsact = true
	case KeySetRetval:
		o.NoSetRetval = true
	case KeyMPTCPSock:
		o.NoMPTCPSock = true
	default:
		return fmt.Errorf("%q must be one of %s", key, strings.Join(OptionalKeys(), ", "))
	}
	return nil
}

// Features is [Probe] with what the options leave unused.
func (o Options) Features() []Feature {
	unused := map[string]bool{KeyTCX: o.ForceClsact, KeySetRetval: o.NoSetRetval, KeyMPTCPSock: o.NoMPTCPSock}
	list := Probe()
	for i := range list {
		list[i].Unused = list[i].Present() && unused[list[i].Key]
	}
	return list
}

// Features is what the kernel has of what the programs use, and what is used.
func (d *Dataplane) Features() []Feature { return d.opts.Features() }

// Helpers that the programs cannot do without, by the type of program. A test
// compares them with what the objects call.
var requiredHelpers = map[ebpf.ProgramType][]asm.BuiltinFunc{
	ebpf.CGroupSockAddr: {
		asm.FnGetNetnsCookie, asm.FnGetPrandomU32, asm.FnGetSocketCookie, asm.FnKtimeGetCoarseNs, asm.FnMapDeleteElem, asm.FnMapLookupElem,
		asm.FnMapUpdateElem, asm.FnSkLookupTcp, asm.FnSkLookupUdp, asm.FnSkRelease, asm.FnSkStorageGet,
	},
	ebpf.CGroupSock: {asm.FnGetSocketCookie, asm.FnMapDeleteElem, asm.FnMapLookupElem},
	ebpf.SchedCLS: {
		asm.FnCheckMtu, asm.FnCsumUpdate, asm.FnFibLookup, asm.FnGetPrandomU32, asm.FnKtimeGetCoarseNs,
		asm.FnL4CsumReplace, asm.FnMapDeleteElem, asm.FnMapLookupElem, asm.FnMapUpdateElem, asm.FnRedirect,
		asm.FnRedirectNeigh, asm.FnRedirectPeer, asm.FnSkbAdjustRoom, asm.FnSkbChangeTail, asm.FnSkbLoadBytes,
		asm.FnSkbPullData, asm.FnSkbStoreBytes,
	},
}

// Types of the maps.
var requiredMaps = []ebpf.MapType{
	ebpf.Hash, ebpf.Array, ebpf.PerCPUArray, ebpf.PerCPUHash, ebpf.LRUHash, ebpf.LPMTrie, ebpf.ArrayOfMaps, ebpf.SkStorage,
}

// Probe asks the kernel for everything that the programs and the loader use, by
// trial and never by version. It asks once in the life of a process.
func Probe() []Feature { return slices.Clone(probe()) }

var probe = sync.OnceValue(func() []Feature {
	// Kernels before 5.11 charge BPF to this limit, and say that a program is not
	// permitted when it is reached. Where it cannot be raised, Check still finds
	// what the kernel does not know.
	rlimit.RemoveMemlock() //nolint:errcheck // the probes tell
	return []Feature{
		{Name: "map types", Required: true, Err: haveMaps()},
		{Name: "batches of map elements", Required: true, Err: haveBatches()},
		{Name: "bounded loops", Required: true, Err: features.HaveBoundedLoops()},
		{Name: "instruction set v3", Required: true, Err: features.HaveV3ISA()},
		{Name: "programs of 1 M instructions", Required: true, Err: features.HaveLargeInstructions()},
		{Name: "hooks of sockets", Required: true, Err: haveSocketHooks()},
		{Name: "helpers of socket programs", Required: true, Err: errors.Join(
			haveHelpers(ebpf.CGroupSockAddr), haveHelpers(ebpf.CGroupSock))},
		{Name: "helpers of packet programs", Required: true, Err: haveHelpers(ebpf.SchedCLS)},
		{Name: "tcx", Key: KeyTCX, Err: haveTCX(), Fallback: "programs are attached to devices by clsact filters"},
		{Name: "bpf_set_retval", Key: KeySetRetval, Err: haveSetRetval(),
			Fallback: "connections to services without backends are refused by packets, not by connect"},
		{Name: "bpf_skc_to_mptcp_sock", Key: KeyMPTCPSock, Err: haveMPTCPSock(),
			Fallback: "closed MPTCP connections leave an entry behind until its slot is needed"},
	}
})

// absent is what a feature consists of and the kernel has not.
type absent struct {
	what string
	err  error
}

func (a absent) Error() string {
	if errors.Is(a.err, ebpf.ErrNotSupported) {
		return a.what
	}
	return fmt.Sprintf("%s: %v", a.what, a.err)
}

func (a absent) Unwrap() error { return a.err }

// absentOf tells of err, if there is one, that it is about what.
func absentOf(what string, err error) error {
	if err == nil {
		return nil
	}
	return absent{what, err}
}

func haveMaps() error {
	var errs []error
	for _, t := range requiredMaps {
		errs = append(errs, absentOf(t.String(), features.HaveMapType(t)))
	}
	return errors.Join(errs...)
}

func haveHelpers(t ebpf.ProgramType) error {
	var errs []error
	for _, fn := range requiredHelpers[t] {
		errs = append(errs, absentOf(helperName(fn), features.HaveProgramHelper(t, fn)))
	}
	return errors.Join(errs...)
}

// helperName is a helper's name as it is in C.
func helperName(fn asm.BuiltinFunc) string {
	name := []byte("bpf")
	for _, c := range []byte(strings.TrimPrefix(fn.String(), "Fn")) {
		if c >= 'A' && c <= 'Z' {
			name = append(name, '_', c-'A'+'a')
		} else {
			name = append(name, c)
		}
	}
	return string(name)
}

// haveSocketHooks tries an empty program at each hook of a cgroup.
func haveSocketHooks() error {
	var errs []error
	for _, p := range cgroupPrograms {
		kind := ebpf.CGroupSockAddr
		if p.attach == ebpf.AttachCgroupInetSockRelease {
			kind = ebpf.CGroupSock
		}
		errs = append(errs, absentOf(p.attach.String(), loadAt(kind, p.attach, asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()})))
	}
	return errors.Join(errs...)
}

// loadAt tries a program at a hook of a cgroup.
func loadAt(kind ebpf.ProgramType, hook ebpf.AttachType, insns asm.Instructions) error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, AttachType: hook, License: "Dual BSD/GPL", Instructions: insns})
	if err != nil {
		return err
	}
	return p.Close()
}

// haveSetRetval tries bpf_set_retval where the connect programs call it.
var haveSetRetval = sync.OnceValue(func() error {
	return loadAt(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, asm.Instructions{
		asm.Mov.Imm(asm.R1, -int32(unix.ECONNREFUSED)),
		asm.FnSetRetval.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	})
})

// haveMPTCPSock tries bpf_skc_to_mptcp_sock where the connect programs call it.
var haveMPTCPSock = sync.OnceValue(func() error {
	return loadAt(ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, asm.Instructions{
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

// haveBatches tries batches on maps of the types that are written and read so.
// (Tries without them are written element by element, see update.)
func haveBatches() error {
	var errs []error
	for _, t := range []ebpf.MapType{ebpf.Array, ebpf.Hash, ebpf.LRUHash} {
		errs = append(errs, absentOf(t.String(), haveBatch(t)))
	}
	return errors.Join(errs...)
}

func haveBatch(t ebpf.MapType) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: t, KeySize: 4, ValueSize: 4, MaxEntries: 64})
	if err != nil {
		return err
	}
	defer m.Close()
	if _, err := m.BatchUpdate([]uint32{0, 1}, []uint32{1, 1}, nil); err != nil {
		return err
	}
	keys, values := make([]uint32, 64), make([]uint32, 64)
	if _, err := m.BatchLookup(new(ebpf.MapBatchCursor), keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}
