// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// source is the root of the repository.
const source = "../.."

// pages are those whose commands are run.
var pages = []string{"docs/install.md"}

// TestPages reads every command that is to be run: it is a shell script, names
// files that there are, and no setting that the page does not have.
func TestPages(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(source, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	ci, err := os.ReadFile(filepath.Join(source, ".ci", "test"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		blocks, err := Blocks(filepath.Join(source, page))
		if err != nil {
			t.Fatal(err)
		}
		count := map[string]int{}
		known := map[string]bool{}
		for _, b := range blocks {
			count[b.Kind]++
			at := func(format string, args ...any) {
				t.Helper()
				t.Errorf(page+":%d: "+format, append([]any{b.Line}, args...)...)
			}
			if out, err := exec.Command("bash", "-n", "-c", b.Script).CombinedOutput(); err != nil {
				at("%v: %s", err, out)
			}
			switch b.Kind {
			case Settings:
				for _, name := range b.Names() {
					known[name] = true
				}
			case Make:
				target := strings.Fields(b.Script)[1]
				if !strings.Contains(string(makefile), "\n"+target+":") || !strings.Contains(string(ci), "make "+target) {
					at("make %s is no target, or CI does not run it", target)
				}
			case Run:
				for _, name := range regexp.MustCompile(`\$([A-Z_]+)`).FindAllStringSubmatch(b.Script, -1) {
					if !known[name[1]] {
						at("%s is not among the settings", name[1])
					}
				}
				for _, path := range regexp.MustCompile(`\.\./(deploy/\S+)`).FindAllStringSubmatch(b.Script, -1) {
					if _, err := os.Stat(filepath.Join(source, path[1])); err != nil {
						at("%v", err)
					}
				}
			}
		}
		for _, kind := range kinds {
			if count[kind] == 0 {
				t.Errorf("%s has no block %s", page, kind)
			}
		}
	}
}

// TestBlocks refuses what nothing would run, and finds what fails.
func TestBlocks(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	read := func(text string) ([]Block, error) {
		if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Blocks(page)
	}
	for _, bad := range []string{"```sh\nls\n```\n", "```sh walk\nls\n```\n", "```\nls\n```\n", "```sh run\nls\n"} {
		if blocks, err := read(bad); err == nil {
			t.Errorf("%q: %v", bad, blocks)
		}
	}
	blocks, err := read("## One\n```yaml\na: b\n```\n```sh settings\nA=1 # what\n```\n## Two\n```sh run\necho $A\n```\n```sh run\nfalse\necho never\n```\n```sh node\nx\n```\n")
	if err != nil || len(blocks) != 4 || blocks[1].Section != "Two" || blocks[1].Line != 9 {
		t.Fatalf("%+v, %v", blocks, err)
	}
	var said string
	r := Runner{Source: source, Dir: t.TempDir(), Log: func(_ string, args ...any) { said += string(args[1].([]byte)) }}
	if err := r.Run(context.Background(), blocks[0]); err == nil || !strings.Contains(err.Error(), "setting A") {
		t.Errorf("without a setting: %v", err)
	}
	r.Settings = map[string]string{"A": "7"}
	for i, ok := range []bool{true, true, false, false} {
		if err := r.Run(context.Background(), blocks[i]); (err == nil) != ok {
			t.Errorf("%+v: %v", blocks[i], err)
		}
	}
	if said != "7" {
		t.Errorf("said %q", said)
	}
}
