// SPDX-License-Identifier: Apache-2.0

// Package cniinstall makes the node's container runtime call the CNI plugin: it
// puts the plugin's file where the runtime looks for it, and chains it into the
// configuration of the node's main CNI. It never makes a configuration: a node
// without one is not ready for pods, and is to say so.
package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/millrace-project/millrace/agent/internal/cniplugin"
	"github.com/millrace-project/millrace/agent/internal/files"
)

// Options say what to install where.
type Options struct {
	// BinDir is where the container runtime finds plugins; empty: the plugin's
	// file is not installed.
	BinDir string
	// ConfDir is where it finds configurations; empty: none is changed.
	ConfDir string
	// Binary is the file to install.
	Binary string
	// Socket is the agent's.
	Socket string
	// AddTimeout is how long ADD waits for an agent that is away.
	AddTimeout time.Duration
}

func (o *Options) entry() cniplugin.Entry {
	return cniplugin.Entry{
		Type: cniplugin.Type, Socket: o.Socket, AddTimeout: o.AddTimeout.String(), DelTimeout: cniplugin.DefaultDelTimeout.String(),
	}
}

// State is what an installation came to.
type State struct {
	// Binary is the installed file.
	Binary string
	// Config is the file that the plugin is chained into, empty if none is.
	Config string
	// Changed are the files that were written.
	Changed []string
	// Problem is why the plugin is not called, empty if it is.
	Problem string
	// Notes are files that were passed over, with why.
	Notes []string
}

// wrapped is what the name of a configuration of a single plugin ends with once a
// list was made of it.
const wrapped = ".millrace-wrapped"

// Install installs, or finds everything as it is to be.
func Install(o Options) State {
	var s State
	if o.BinDir != "" {
		if err := s.installBinary(o); err != nil {
			// Chained without it, every pod would fail.
			s.Problem = err.Error()
			return s
		}
	}
	if o.ConfDir == "" {
		return s
	}
	for range 5 {
		err := s.installConfig(o)
		if !errors.Is(err, errChanged) {
			if err != nil {
				s.Problem = err.Error()
			}
			return s
		}
	}
	s.Problem = fmt.Sprintf("%s: %v, again and again", o.ConfDir, errChanged)
	return s
}

func (s *State) installBinary(o Options) error {
	want, err := os.Open(o.Binary)
	if err != nil {
		return fmt.Errorf("read the CNI plugin to install: %w", err)
	}
	defer want.Close() //nolint:errcheck // it was read from
	s.Binary = filepath.Join(o.BinDir, cniplugin.Type)
	if same, err := sameProgram(want, s.Binary); err != nil {
		return fmt.Errorf("read the CNI plugin to install: %w", err)
	} else if same {
		return nil
	}
	removeTemporary(o.BinDir)
	// Renamed into place, so that a call that goes on keeps the file it runs.
	if err := create(s.Binary, want, 0o755, nil); err != nil {
		return fmt.Errorf("install the CNI plugin: %w", err)
	}
	s.Changed = append(s.Changed, s.Binary)
	return nil
}

// configs returns the files that container runtimes look at, in their order.
func configs(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range list {
		switch filepath.Ext(entry.Name()) {
		case ".conf", ".conflist", ".json":
			if !entry.IsDir() {
				names = append(names, entry.Name())
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// installConfig chains the plugin into the first configuration that can be used,
// which is the one that container runtimes take.
func (s *State) installConfig(o Options) error {
	s.Config, s.Notes = "", nil
	names, err := configs(o.ConfDir)
	if err != nil {
		return fmt.Errorf("read the node's CNI configurations: %w", err)
	}
	for _, name := range names {
		path := filepath.Join(o.ConfDir, name)
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return errChanged
		}
		if err != nil {
			s.Notes = append(s.Notes, err.Error())
			continue
		}
		used := path
		if filepath.Ext(name) == ".conflist" {
			err = s.chainList(o, path, text)
		} else {
			used = listFor(path)
			err = s.wrapSingle(o, path, used, text)
		}
		switch {
		case err == nil:
			s.Config = used
			return nil
		case errors.Is(err, errChanged), errors.Is(err, fs.ErrNotExist):
			return errChanged
		}
		// One that runtimes can use is what they use, so there is no next.
		var invalid *invalidError
		if !errors.As(err, &invalid) {
			return fmt.Errorf("the CNI plugin cannot be chained into %s: %w", path, err)
		}
		s.Notes = append(s.Notes, fmt.Sprintf("%s: %v", path, err))
	}
	if len(s.Notes) > 0 {
		return errors.New("no CNI configuration of the node can be used: " + strings.Join(s.Notes, "; "))
	}
	return fmt.Errorf("%s has no CNI configuration yet: the node is not ready for pods until its main CNI puts one there", o.ConfDir)
}

func (s *State) chainList(o Options, path string, text []byte) error {
	chained, err := chain(text, o.entry())
	if err != nil || bytes.Equal(chained, text) {
		return err
	}
	removeTemporary(o.ConfDir)
	if err := replace(path, text, chained); err != nil {
		return err
	}
	s.Changed = append(s.Changed, path)
	return nil
}

// listFor names the list that takes the place of the configuration of a single
// plugin: 10-net.conflist for 10-net.conf.
func listFor(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".conflist"
}

// wrapSingle makes a list of the configuration of a single plugin, and moves that
// out of the sight of container runtimes: its name would come before the list's.
func (s *State) wrapSingle(o Options, path, to string, text []byte) error {
	made, err := wrap(text, o.entry())
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if other, err := os.ReadFile(to); err == nil && !isWrapped(other, to) {
		return fmt.Errorf("%s stands where the list for it would be", to)
	}
	if err := create(to, bytes.NewReader(made), 0o644, info); err != nil {
		return err
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, text) {
		return errChanged
	}
	if err := os.Rename(path, path+wrapped); err != nil {
		return err
	}
	s.Changed = append(s.Changed, to)
	return files.SyncDir(o.ConfDir)
}

// isWrapped tells whether a list was made of the configuration of a single plugin,
// which is put aside.
func isWrapped(text []byte, path string) bool {
	if l, err := parseList(text); err != nil || len(l.ours()) == 0 {
		return false
	}
	_, ok := asideOf(path)
	return ok
}

// asideOf returns the configuration that was put aside for a list.
func asideOf(path string) (string, bool) {
	for _, ext := range []string{".conf", ".json"} {
		aside := strings.TrimSuffix(path, ".conflist") + ext + wrapped
		if _, err := os.Stat(aside); err == nil {
			return aside, true
		}
	}
	return "", false
}
