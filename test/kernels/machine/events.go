// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
)

// Test is what a test of a run came to, with the tests that it ran.
type Test struct {
	Name   string // without the names of those that ran it
	Action string // pass, fail or skip; empty if it never ended
	Output string
	Tests  []*Test
}

// Tests reads what a test binary wrote when run with -test.v=test2json. What it
// wrote outside of every test is returned as text.
func (r *Result) Tests() (tests []*Test, outside string, err error) {
	cmd := exec.Command("go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(r.Output)
	events, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("read the tests of %s: %w", r.Run, err)
	}
	root := &Test{}
	known := map[string]*Test{"": root}
	find := func(name string) *Test {
		t := known[name]
		if t == nil {
			t = &Test{Name: name}
			parent := root
			if i := strings.LastIndexByte(name, '/'); i >= 0 && known[name[:i]] != nil {
				parent, t.Name = known[name[:i]], name[i+1:]
			}
			parent.Tests = append(parent.Tests, t)
			known[name] = t
		}
		return t
	}
	lines := bufio.NewScanner(bytes.NewReader(events))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, "", fmt.Errorf("read the tests of %s: %w", r.Run, err)
		}
		t := find(e.Test)
		switch e.Action {
		case "output":
			if !strings.HasPrefix(e.Output, "=== ") {
				t.Output += e.Output
			}
		case "pass", "fail", "skip":
			t.Action = e.Action
		}
	}
	return root.Tests, root.Output, lines.Err()
}
