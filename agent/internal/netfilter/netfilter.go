// SPDX-License-Identifier: Apache-2.0

// Package netfilter prepares the host's connection tracking for flows of which
// it sees only the beginning and the end.
package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// liberal is the setting, per network namespace, by which connection tracking
// takes a TCP segment outside of the window for a valid one (kernel:
// Documentation/networking/nf_conntrack-sysctl.rst). Between the handshake and
// the FIN a flow on the fast path is not seen by netfilter; without the setting
// its FIN would be invalid and a `ct state invalid drop` rule would hang every
// close.
const liberal = "net/netfilter/nf_conntrack_tcp_be_liberal"

// before is the file that keeps what the setting was, in the state directory.
const before = "nf_conntrack_tcp_be_liberal.before"

// Tracking is the connection tracking of the agent's network namespace.
type Tracking struct {
	// SysctlDir is where the kernel's settings are, "/proc/sys".
	SysctlDir string
	// StateDir is where the setting that was found is kept.
	StateDir string
}

func (t Tracking) path() string { return filepath.Join(t.SysctlDir, liberal) }

// Allow makes connection tracking accept flows of the fast path. It returns nil
// also where there is no connection tracking.
func (t Tracking) Allow() error {
	found, err := os.ReadFile(t.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", t.path(), err)
	}
	value := strings.TrimSpace(string(found))
	if value == "1" {
		return nil
	}
	// Kept before it is changed, or it could not be put back after a crash.
	if err := t.keep(value); err != nil {
		return err
	}
	if err := os.WriteFile(t.path(), []byte("1"), 0); err != nil {
		return fmt.Errorf("set %s to 1: %w", t.path(), err)
	}
	return nil
}

// keep writes the value to its file, in whole or not at all: half of it would
// be put back one day.
func (t Tracking) keep(value string) error {
	path := filepath.Join(t.StateDir, before)
	draft := path + ".new"
	file, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keep what %s was: %w", liberal, err)
	}
	_, err = file.WriteString(value)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		os.Remove(draft) //nolint:errcheck // the first error is told
		return fmt.Errorf("keep what %s was: %w", liberal, err)
	}
	return nil
}

// Restore puts the setting back as it was before the first Allow that changed
// it. Without such a one it does nothing.
func (t Tracking) Restore() error {
	kept := filepath.Join(t.StateDir, before)
	value, err := os.ReadFile(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what %s was: %w", liberal, err)
	}
	if len(bytes.TrimSpace(value)) == 0 {
		// An agent that wrote it in place died before it had changed anything.
		return forget(kept)
	}
	// Without connection tracking there is nothing to put back.
	if err := os.WriteFile(t.path(), value, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore %s: %w", t.path(), err)
	}
	return forget(kept)
}

func forget(kept string) error {
	if err := os.Remove(kept); err != nil {
		return fmt.Errorf("forget what %s was: %w", liberal, err)
	}
	return nil
}
