// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	// Before all others: what they see is what the stack sees.
	l, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: hook.attachType(),
		Anchor: link.Head()})
	if err != nil {
		return a, err
	}
	return a, pinLink(l, a.Pin)
}

// Filter by which a program stands on clsact: fixed, so that it is replaced and
// removed and nobody else's is.
const (
	clsactPriority = 1
	clsactHandle   = 0x6d72 // "mr"
)

func clsactParent(hook Hook) uint32 {
	if hook == Egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

func clsactFilter(ifindex int, hook Hook) *netlink.BpfFilter {
	return &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: ifindex,
		Parent:    clsactParent(hook),
		Handle:    clsactHandle,
		Protocol:  unix.ETH_P_ALL,
		Priority:  clsactPriority,
	}}
}

// attachClsact attaches by a filter of the clsact qdisc. It cannot be pinned,
// so the program is pinned in its place to remember it by.
func (d *Dataplane) attachClsact(ifindex int, hook Hook, name string, prog *ebpf.Program) (Attachment, error) {
	a := Attachment{Kind: KindClsact, Ifindex: ifindex, Hook: hook, Pin: d.devicePin(KindClsact, ifindex, hook)}
	if _, err := os.Lstat(a.Pin); err == nil {
		a.Adopted = true
		if d.runsClsact(ifindex, hook, a.Pin, name) {
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
	fresh := a.Pin + "~" // names with ~ are not read back
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove left-over pin: %w", err)
	}
	c, err := prog.Clone()
	if err != nil {
		return err
	}
	err = c.Pin(fresh)
	c.Close()
	if err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	if err := os.Rename(fresh, a.Pin); err != nil {
		return fmt.Errorf("pin program: %w", err)
	}
	f := clsactFilter(a.Ifindex, a.Hook)
	f.Fd, f.Name, f.DirectAction = prog.FD(), name, true
	if err := netlink.FilterReplace(f); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

// runsClsact tells whether both the filter and the pin in its place are of the
// named program.
func (d *Dataplane) runsClsact(ifindex int, hook Hook, pin, name string) bool {
	p, err := ebpf.LoadPinnedProgram(pin, nil)
	if err != nil {
		return false
	}
	defer p.Close()
	if id, err := programID(p); err != nil || id != d.ids[name] {
		return false
	}
	f := findClsact(ifindex, hook)
	return f != nil && f.Id == int(d.ids[name])
}

// findClsact returns the filter that a device has, or nil.
func findClsact(ifindex int, hook Hook) *netlink.BpfFilter {
	want := clsactFilter(ifindex, hook)
	filters, err := netlink.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}, want.Parent)
	if err != nil {
		return nil
	}
	for _, f := range filters {
		have, ok := f.(*netlink.BpfFilter)
		if ok && have.Handle == want.Handle && have.Priority == want.Priority && have.DirectAction {
			return have
		}
	}
	return nil
}

// removeClsact removes the filter. The qdisc stays: others may use it, and
// empty it costs nothing.
func removeClsact(ifindex int, hook Hook) error {
	err := netlink.FilterDel(clsactFilter(ifindex, hook))
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
