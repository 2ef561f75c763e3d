// SPDX-License-Identifier: Apache-2.0

package cniinstall

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// place is a node's directories.
type place struct {
	*testing.T
	Options
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir := t.TempDir()
	p := &place{T: t, Options: Options{
		BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), Binary: filepath.Join(dir, "millrace-cni"),
		Socket: "/run/millrace/agent.sock", AddTimeout: 20 * time.Second,
	}}
	for _, each := range []string{p.BinDir, p.ConfDir} {
		if err := os.Mkdir(each, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.put(p.Binary, "program 1")
	return p
}

func (p *place) put(path, text string) {
	p.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		p.Fatal(err)
	}
}

func (p *place) conf(name, text string) { p.put(filepath.Join(p.ConfDir, name), text) }

func (p *place) read(path string) string {
	p.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		p.Fatal(err)
	}
	return string(text)
}

// files returns all files of the configuration directory, hidden ones too.
func (p *place) files() []string {
	p.Helper()
	list, err := os.ReadDir(p.ConfDir)
	if err != nil {
		p.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

const simple = `{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "ptp"}]}`

// TestInstall follows an installation through what happens on a node.
func TestInstall(t *testing.T) {
	p := newPlace(t)
	s := Install(p.Options)
	if s.Config != "" || !strings.Contains(s.Problem, "no CNI configuration yet") || len(p.files()) != 0 {
		t.Fatalf("without a main CNI: %+v, %v", s, p.files())
	}
	program := filepath.Join(p.BinDir, "millrace-cni")
	if info, err := os.Stat(program); err != nil || info.Mode().Perm() != 0o755 || p.read(program) != "program 1" {
		t.Fatalf("program: %v, %v", info, err)
	}

	p.conf("20-late.conflist", simple)
	p.conf("10-main.conflist", simple)
	p.conf("00-notes.txt", "nothing")
	s = Install(p.Options)
	main := filepath.Join(p.ConfDir, "10-main.conflist")
	if s.Config != main || s.Problem != "" || !slices.Equal(s.Changed, []string{main}) {
		t.Fatalf("%+v", s)
	}
	if info, err := os.Stat(main); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the file's mode changed: %v, %v", info, err)
	}
	if p.read(filepath.Join(p.ConfDir, "20-late.conflist")) != simple {
		t.Error("a file that no runtime uses was changed")
	}
	if s = Install(p.Options); len(s.Changed) != 0 || s.Config != main {
		t.Fatalf("once more: %+v", s)
	}
	p.put(p.Binary, "program 2, longer")
	running, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if s = Install(p.Options); !slices.Equal(s.Changed, []string{program}) || p.read(program) != "program 2, longer" {
		t.Fatalf("with another program: %+v", s)
	}
	old := make([]byte, 100)
	if n, _ := running.Read(old); string(old[:n]) != "program 1" {
		t.Errorf("who ran the old program reads %q", old[:n])
	}

	// A file that cannot be used is passed over; one of another version is not.
	p.conf("05-broken.conflist", "{")
	if s = Install(p.Options); s.Config != main || len(s.Notes) != 1 || !strings.Contains(s.Notes[0], "05-broken") {
		t.Fatalf("behind a broken file: %+v", s)
	}
	p.conf("04-old.conflist", strings.Replace(simple, "1.0.0", "0.2.0", 1))
	if s = Install(p.Options); s.Config != "" || !strings.Contains(s.Problem, "04-old") || !strings.Contains(s.Problem, "0.2.0") {
		t.Fatalf("with a configuration of an old version: %+v", s)
	}

	changed, err := Remove(p.BinDir, p.ConfDir)
	if err != nil || !slices.Equal(changed, []string{main, program}) || p.read(main) != simple {
		t.Fatalf("removed %v, %v: %s", changed, err, p.read(main))
	}
	if left, _ := os.ReadDir(p.BinDir); len(left) != 0 {
		t.Fatalf("left %v", left)
	}
	if changed, err := Remove(p.BinDir, p.ConfDir); err != nil || len(changed) != 0 {
		t.Fatalf("removed again: %v, %v", changed, err)
	}
}

// TestWrapped makes a list of a single plugin's configuration, again when the main
// CNI writes it anew, and puts it back.
func TestWrapped(t *testing.T) {
	p := newPlace(t)
	single := `{"cniVersion": "0.4.0", "name": "n", "type": "ptp"}`
	p.conf("10-net.conf", single)
	list := filepath.Join(p.ConfDir, "10-net.conflist")
	for _, mtu := range []string{"", `, "mtu": 1400`} {
		single = strings.Replace(single, "}", mtu+"}", 1)
		p.conf("10-net.conf", single)
		s := Install(p.Options)
		if s.Config != list || s.Problem != "" {
			t.Fatalf("%+v", s)
		}
		if files := p.files(); !slices.Equal(files, []string{"10-net.conf.millrace-wrapped", "10-net.conflist"}) {
			t.Fatalf("files %v", files)
		}
		if !strings.Contains(p.read(list), single) {
			t.Fatalf("list %s", p.read(list))
		}
		if s := Install(p.Options); len(s.Changed) != 0 || s.Config != list {
			t.Fatalf("once more: %+v", s)
		}
	}
	if _, err := Remove(p.BinDir, p.ConfDir); err != nil {
		t.Fatal(err)
	}
	if files := p.files(); !slices.Equal(files, []string{"10-net.conf"}) || p.read(filepath.Join(p.ConfDir, "10-net.conf")) != single {
		t.Fatalf("after removal: %v", files)
	}
	// Another's list stands where ours would be.
	p.conf("10-net.conflist", simple)
	if s := Install(p.Options); !strings.Contains(s.Problem, "10-net.conflist") || p.read(list) != simple {
		t.Fatalf("%+v", s)
	}
}

// TestReplaceKeepsAnothers finds that somebody wrote the file in the same moment:
// what they wrote stays.
func TestReplaceKeepsAnothers(t *testing.T) {
	p := newPlace(t)
	p.conf("10-main.conflist", "theirs")
	path := filepath.Join(p.ConfDir, "10-main.conflist")
	if err := replace(path, []byte("known"), []byte("ours")); !errors.Is(err, errChanged) {
		t.Fatalf("error %v", err)
	}
	if p.read(path) != "theirs" || len(p.files()) != 1 {
		t.Fatalf("%v: %s", p.files(), p.read(path))
	}
	if err := replace(path, []byte("theirs"), []byte("ours")); err != nil || p.read(path) != "ours" || len(p.files()) != 1 {
		t.Fatalf("%v, %v: %s", err, p.files(), p.read(path))
	}
}

// TestFollow watches: a configuration comes, is written anew, and a removed program
// comes back.
func TestFollow(t *testing.T) {
	p := newPlace(t)
	ctx, cancel := context.WithCancel(context.Background())
	i := NewInstaller(p.Options, zap.NewNop())
	done := make(chan struct{})
	go func() { defer close(done); i.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v", what, i.State())
			}
		}
	}
	until("no configuration", func() bool { return strings.Contains(i.State().Problem, "no CNI configuration yet") })
	if problems := i.Problems(); len(problems) != 1 || !strings.Contains(i.Proto().GetProblem(), "main CNI") {
		t.Fatalf("problems %v", problems)
	}
	main := filepath.Join(p.ConfDir, "10-main.conflist")
	for range 3 {
		p.conf("10-main.conflist", simple)
		until("a new configuration", func() bool {
			text, err := os.ReadFile(main)
			return err == nil && strings.Contains(string(text), "millrace-cni")
		})
	}
	until("chained", func() bool { return i.Proto().GetConfig() == main && i.Proto().GetProblem() == "" })
	program := filepath.Join(p.BinDir, "millrace-cni")
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	until("the program is back", func() bool { _, err := os.Stat(program); return err == nil })
}
