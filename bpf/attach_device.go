// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AttachDevice attaches the role's programs to both hooks of a device of the
// process's network namespace. What is attached already gets the new programs
// without a gap. The egress program goes first: it passes what the ingress
// program has not begun.
func (d *Dataplane) AttachDevice(ifindex int, role Role) ([]Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.restorePins(); err != nil {
		return nil, err
	}
	var out []Attachment
	for _, hook := range []Hook{Egress, Ingress} {
		a, err := d.attachDevice(ifindex, role, hook)
		if err != nil {
			return out, fmt.Errorf("attach %s to device %d: %w", deviceProgram(role, hook), ifindex, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// DetachDevice removes all attachments to a device; none is no error.
func (d *Dataplane) DetachDevice(ifindex int) error {
	return d.removeWhere(func(a Attachment) bool { return a.Kind != KindCgroup && a.Ifindex == ifindex })
}

func (d *Dataplane) devicePin(kind AttachmentKind, ifindex int, hook Hook) string {
	return filepath.Join(d.opts.PinPath, "links", fmt.Sprintf("%s-%d-%s", kind, ifindex, hook))
}

func (d *Dataplane) attachDevice(ifindex int, role Role, hook Hook) (Attachment, error) {
	name := deviceProgram(role, hook)
	prog := d.programs[name]
	if prog == nil {
		return Attachment{}, errors.New("no such program loaded")
	}
	if d.tcx {
		a, err := d.attachTCX(ifindex, hook, name, prog)
		a.Program = name
		if err != nil {
			return a, err
		}
		// A clsact attachment of an earlier run would do everything twice.
		return a, d.dropOther(KindClsact, ifindex, hook)
	}
	a, err := d.attachClsact(ifindex, hook, name, prog)
	a.Program = name
	if err != nil {
		return a, err
	}
	return a, d.dropOther(KindTCX, ifindex, hook)
}

// dropOther removes a hook's attachment of the other kind, if there is one.
func (d *Dataplane) dropOther(kind AttachmentKind, ifindex int, hook Hook) error {
	a := Attachment{Kind: kind, Ifindex: ifindex, Hook: hook, Pin: d.devicePin(kind, ifindex, hook)}
	if _, err := os.Lstat(a.Pin); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := a.remove(); err != nil {
		return fmt.Errorf("remove %s: %w", a, err)
	}
	return nil
}

func (d *Dataplane) attachTCX(ifindex int, hook Hook, name string, prog *ebpf.Program) (Attachment, error) {
	a := Attachment{Kind: KindTCX, Ifindex: ifindex, Hook: hook, Pin: d.devicePin(KindTCX, ifindex, hook)}
	same := func(info *link.Info) bool {
		t := info.TCX()
		return t != nil && int(t.Ifindex) == ifindex && ebpf.AttachType(t.AttachType) == hook.attachType()
	}
	adopted, err := d.adoptLink(a.Pin, name, same)
	if err != nil || adopted {
		a.Adopted = adopted
		return a, err
	}
	// Before all others: what they see is what the stack sees. Behind the past.
	anchor := link.Head()
	if before, err := link.LoadPinnedLink(d.pastPin(a.Pin), nil); err == nil {
		defer before.Close()
		if info, err := before.Info(); err == nil && same(info) {
			anchor = link.AfterLink(before)
		}
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: hook.attachType(), Anchor: anchor})
	if err != nil {
		return a, err
	}
	return a, pinLink(l, a.Pin)
}

// Filters by which programs stand on clsact: their handles are fixed, so that
// they are replaced and removed and nobody else's are. There are two only while
// a generation succeeds another, and then the later one has the next priority:
// of one priority the kernel runs that first which came last.
const clsactPriority = 1

var clsactHandles = []uint32{0x6d72, 0x6d73} // "mr", "ms"

func clsactParent(hook Hook) uint32 {
	if hook == Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func clsactFilter(ifindex int, hook Hook, handle uint32, priority uint16) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: ifindex,
		Parent:    clsactParent(hook),
		Handle:    handle,
		Protocol:  unix.ETH_P_ALL,
		Priority:  priority,
	}}
}

// attachClsact attaches by a filter of the clsact qdisc. It cannot be pinned,
// so the program is pinned in its place to remember it by.
func (d *Dataplane) attachClsact(ifindex int, hook Hook, name string, prog *ebpf.Program) (Attachment, error) {
	a := Attachment{Kind: KindClsact, Ifindex: ifindex, Hook: hook, Pin: d.devicePin(KindClsact, ifindex, hook)}
	if _, err := os.Lstat(a.Pin); err == nil {
		a.Adopted = true
		if f, err := a.filter(); err != nil {
			return a, err
		} else if f != nil && f.Id == int(d.ids[name]) {
			return a, nil
		}
	}
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return a, fmt.Errorf("add clsact: %w", err)
	}
	if err := replaceClsact(a, name, prog); err != nil {
		if !a.Adopted {
			os.Remove(a.Pin) //nolint:errcheck // it may not be there
		}
		return a, err
	}
	return a, nil
}

// replaceClsact makes the filter run a program, and the pin remember it. Pinned
// first: a crash in between leaves nothing that is not found again.
func replaceClsact(a Attachment, name string, prog *ebpf.Program) error {
	handle, priority, err := a.place()
	if err != nil {
		return err
	}
	if err := replacePin(a.Pin, func(path string) error { return pinAt(prog, path) }); err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	f := clsactFilter(a.Ifindex, a.Hook, handle, priority)
	f.Fd, f.Name, f.DirectAction = prog.FD(), name, true
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

// filters lists the device's that are ours, those of the other generation left
// out. Not to know them is an error: taken for none, a filter would stay with
// the tables of before, get a second one beside it, or outlive its pin.
func (a Attachment) filters() ([]*netlink.BpfFilter, error) {
	parent := clsactParent(a.Hook)
	all, err := netlink.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.Ifindex}}, parent)
	if errors.Is(err, unix.ENODEV) {
		return nil, nil // the device is gone, and its filters
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	others, err := pinnedProgramID(elsewhere(a.Pin))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("program of the other generation: %w", err)
	}
	var ours []*netlink.BpfFilter
	for _, f := range all {
		have, ok := f.(*netlink.BpfFilter)
		if ok && slices.Contains(clsactHandles, have.Handle) && have.DirectAction &&
			(others == 0 || have.Id != int(others)) {
			ours = append(ours, have)
		}
	}
	return ours, nil
}

// filter is the attachment's, nil if somebody removed it.
func (a Attachment) filter() (*netlink.BpfFilter, error) {
	all, err := a.filters()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[0], nil
}

// place is the handle and priority of the attachment's filter, or of one to be
// made: another handle than the other generation has, and behind it.
func (a Attachment) place() (handle uint32, priority uint16, err error) {
	if f, err := a.filter(); err != nil {
		return 0, 0, err
	} else if f != nil {
		return f.Handle, f.Priority, nil
	}
	other := Attachment{Kind: a.Kind, Ifindex: a.Ifindex, Hook: a.Hook, Pin: elsewhere(a.Pin)}
	if _, err := os.Lstat(other.Pin); err == nil {
		f, err := other.filter()
		if err != nil {
			return 0, 0, err
		}
		if f != nil && f.Handle == clsactHandles[0] {
			return clsactHandles[1], f.Priority + 1, nil
		}
		if f != nil {
			return clsactHandles[0], f.Priority + 1, nil
		}
	}
	return clsactHandles[0], clsactPriority, nil
}

// pinnedProgramID is the id of a pinned program.
func pinnedProgramID(pin string) (ebpf.ProgramID, error) {
	p, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return kernelID(p)
}

// removeFilter removes the filter. The qdisc stays: others may use it, and
// empty it costs nothing.
func (a Attachment) removeFilter() error {
	f, err := a.filter()
	if err != nil || f == nil {
		return err
	}
	err = netlink.FilterDel(clsactFilter(a.Ifindex, a.Hook, f.Handle, f.Priority))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil // the filter, the qdisc or the device is gone
	}
	return err
}

func deviceExists(ifindex int) bool {
	_, err := netlink.LinkByIndex(ifindex)
	var missing netlink.LinkNotFoundError
	return !errors.As(err, &missing)
}
