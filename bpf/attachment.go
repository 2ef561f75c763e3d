// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// AttachmentKind is how a program is attached.
type AttachmentKind string

// Kinds of attachments; also the first part of a pin's name.
const (
	KindCgroup AttachmentKind = "cgroup"
	KindTCX    AttachmentKind = "tcx"
	KindClsact AttachmentKind = "clsact"
)

// Attachment is one program on one hook.
type Attachment struct {
	Kind    AttachmentKind
	Program string // name of the program; empty where only the kernel knows
	Pin     string // path of the pin

	Ifindex int  // device, of kinds tcx and clsact
	Hook    Hook // its side

	// Adopted: the attachment was there and got the new program without a gap.
	Adopted bool
	// Severed: what it was attached to is gone; only the pin is left.
	Severed bool
}

// String is, for instance, "tcx ifindex 7 ingress".
func (a Attachment) String() string {
	if a.Kind == KindCgroup {
		return string(a.Kind) + " " + a.Program
	}
	return fmt.Sprintf("%s ifindex %d %s", a.Kind, a.Ifindex, a.Hook)
}

// Attachments lists what is pinned under the dataplane's path.
func (d *Dataplane) Attachments() ([]Attachment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return attachments(d.opts.PinPath)
}

func attachments(pinPath string) ([]Attachment, error) {
	dir := filepath.Join(pinPath, "links")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // somebody removed it, and every attachment with it
	}
	if err != nil {
		return nil, fmt.Errorf("list attachments: %w", err)
	}
	var out []Attachment
	for _, e := range entries {
		a, ok := parsePin(filepath.Join(dir, e.Name()))
		if !ok {
			continue // not ours
		}
		a.Severed, err = a.severed()
		if err != nil {
			return nil, fmt.Errorf("attachment %s: %w", a, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// parsePin reads an attachment from the name of its pin.
func parsePin(path string) (Attachment, bool) {
	a := Attachment{Pin: path}
	parts := strings.Split(filepath.Base(path), "-")
	switch kind := AttachmentKind(parts[0]); {
	case kind == KindCgroup && len(parts) == 2:
		a.Kind, a.Program = kind, parts[1]
		return a, true
	case (kind == KindTCX || kind == KindClsact) && len(parts) == 3:
		ifindex, err := strconv.Atoi(parts[1])
		a.Kind, a.Ifindex, a.Hook = kind, ifindex, Hook(parts[2])
		return a, err == nil && (a.Hook == Ingress || a.Hook == Egress)
	}
	return a, false
}

// severed tells whether the attachment's target is gone.
func (a Attachment) severed() (bool, error) {
	if a.Kind == KindClsact {
		return !deviceExists(a.Ifindex), nil
	}
	l, err := link.LoadPinnedLink(a.Pin, nil)
	if err != nil {
		return false, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	if c := info.Cgroup(); c != nil {
		return c.CgroupId == 0, nil
	}
	if t := info.TCX(); t != nil {
		return t.Ifindex == 0, nil
	}
	return false, nil
}

// remove detaches and removes the pin.
func (a Attachment) remove() error {
	if a.Kind == KindClsact {
		if err := a.removeFilter(); err != nil {
			return err
		}
		return os.Remove(a.Pin)
	}
	l, err := link.LoadPinnedLink(a.Pin, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	// The pin may not be the only reference, so detach rather than drop it.
	if err := l.Detach(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !isSevered(err) {
		return err
	}
	return l.Unpin()
}

// removeWhere removes the attachments that pick chooses.
func (d *Dataplane) removeWhere(pick func(Attachment) bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, err := attachments(d.opts.PinPath)
	if err != nil {
		return err
	}
	if d.past != nil {
		before, err := attachments(d.past.path)
		if err != nil {
			return err
		}
		all = append(all, before...)
	}
	var errs []error
	for _, a := range all {
		if pick(a) {
			if err := a.remove(); err != nil {
				errs = append(errs, fmt.Errorf("detach %s: %w", a, err))
			}
		}
	}
	return errors.Join(errs...)
}

// DetachSevered removes the pins of attachments whose device or cgroup is gone,
// also those that a crash left before they were in their place.
func (d *Dataplane) DetachSevered() error {
	return errors.Join(d.removeWhere(func(a Attachment) bool { return a.Severed }), d.removeSeveredFresh())
}

func (d *Dataplane) removeSeveredFresh() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	left, err := filepath.Glob(filepath.Join(d.opts.PinPath, "links", "*"+fresh))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		a, ok := parsePin(strings.TrimSuffix(path, fresh))
		if !ok {
			continue
		}
		a.Pin = path
		severed, err := a.severed()
		if err == nil && severed {
			err = os.Remove(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("left-over pin %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// removeAttachments detaches everything under a pin path, calls before answers:
// the reverse of attaching.
func removeAttachments(pinPath string) []error {
	all, err := attachments(pinPath)
	if err != nil {
		return []error{err}
	}
	rank := func(a Attachment) int {
		for i, p := range cgroupPrograms {
			if p.name == a.Program {
				return len(cgroupPrograms) - i
			}
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b Attachment) int { return rank(a) - rank(b) })
	var errs []error
	for _, a := range all {
		if err := a.remove(); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", a, err))
		}
	}
	return errs
}
