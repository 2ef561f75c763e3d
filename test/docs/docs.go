// SPDX-License-Identifier: Apache-2.0

// Package docs runs the commands of an operators' page, as they stand there: a
// page whose commands do not work is wrong.
//
// The first word after the language of a fenced shell block tells what its
// commands are: run (with kubectl, on a machine with the repository), node (as
// root on a node of the cluster), settings (the reader's own values), make (a
// target of the Makefile, which CI runs by itself).
package docs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Kinds of blocks.
const (
	Run      = "run"
	Node     = "node"
	Settings = "settings"
	Make     = "make"
)

// Block is a fenced block of shell commands.
type Block struct {
	// Section is the heading that it is below.
	Section string
	// Kind is one of the kinds.
	Kind string
	// Line is where it begins in its page.
	Line int
	// Script is what is in it.
	Script string
}

var kinds = []string{Run, Node, Settings, Make}

// Blocks reads the shell blocks of a page. One whose kind is not told is an error:
// nothing would run it.
func Blocks(page string) ([]Block, error) {
	data, err := os.ReadFile(page)
	if err != nil {
		return nil, fmt.Errorf("reading a page: %w", err)
	}
	var blocks []Block
	var section string
	var inside *Block
	for i, line := range strings.Split(string(data), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case inside != nil && fence:
			if inside.Kind != "" {
				blocks = append(blocks, *inside)
			}
			inside = nil
		case inside != nil:
			inside.Script += line + "\n"
		case fence:
			inside = &Block{Section: section, Line: i + 1}
			if language, kind, _ := strings.Cut(info, " "); language == "sh" {
				if !slices.Contains(kinds, kind) {
					return nil, fmt.Errorf("%s:%d: a block of commands is %q, want one of %q", page, i+1, kind, kinds)
				}
				inside.Kind = kind
			} else if info == "" {
				return nil, fmt.Errorf("%s:%d: a block without a language", page, i+1)
			}
		case strings.HasPrefix(line, "## "):
			section = strings.TrimPrefix(line, "## ")
		}
	}
	if inside != nil {
		return nil, fmt.Errorf("%s:%d: the block does not end", page, inside.Line)
	}
	return blocks, nil
}

var assignment = regexp.MustCompile(`(?m)^([A-Z_]+)=`)

// Names are the variables that a block of settings has.
func (b *Block) Names() []string {
	var names []string
	for _, match := range assignment.FindAllStringSubmatch(b.Script, -1) {
		names = append(names, match[1])
	}
	return names
}

// Runner runs the blocks of a page.
type Runner struct {
	// Source is the root of the repository; a copy of its deploy/ is worked on.
	Source string
	// Dir is an empty directory to run in.
	Dir string
	// Settings are values for those of the page.
	Settings map[string]string
	// Env is added to the environment, such as KUBECONFIG and PATH.
	Env []string
	// Overlay is added to the overlay that the page has its reader write: patches that
	// the page leaves to readers whose nodes differ.
	Overlay string
	// Node runs a script as root on a node.
	Node func(ctx context.Context, script string) (output []byte, err error)
	// Log is told what is run and what it said.
	Log func(format string, args ...any)
}

// Prepare copies what the commands work with.
func (r *Runner) Prepare() error {
	if err := os.CopyFS(filepath.Join(r.Dir, "deploy"), os.DirFS(filepath.Join(r.Source, "deploy"))); err != nil {
		return fmt.Errorf("copying deploy/: %w", err)
	}
	return nil
}

// Run runs one block, or checks what is not to be run here.
func (r *Runner) Run(ctx context.Context, b Block) error {
	fail := func(err error) error { return fmt.Errorf("line %d, %s: %w", b.Line, b.Section, err) }
	var out []byte
	var err error
	switch b.Kind {
	case Settings:
		for _, name := range b.Names() {
			if _, ok := r.Settings[name]; !ok {
				return fail(fmt.Errorf("no value is given for the setting %s", name))
			}
		}
		return nil
	case Make:
		return nil
	case Node:
		if r.Node == nil {
			return fail(errors.New("there is no node to run it on"))
		}
		out, err = r.Node(ctx, b.Script)
	default:
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", b.Script)
		cmd.Dir = r.Dir
		cmd.Env = append(os.Environ(), r.Env...)
		for name, value := range r.Settings {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		out, err = cmd.CombinedOutput()
	}
	if err == nil {
		err = r.addOverlay()
	}
	r.Log("%s\n%s", strings.TrimSpace(b.Script), bytes.TrimSpace(out))
	if err != nil {
		return fail(fmt.Errorf("%w: %s", err, bytes.TrimSpace(out)))
	}
	return nil
}

// addOverlay adds Overlay once there is something to add it to.
func (r *Runner) addOverlay() error {
	path := filepath.Join(r.Dir, "my-overlay", "kustomization.yaml")
	if _, err := os.Stat(path); r.Overlay == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("adding to the overlay: %w", err)
	}
	_, err = file.WriteString(r.Overlay)
	r.Overlay = ""
	return errors.Join(err, file.Close())
}
