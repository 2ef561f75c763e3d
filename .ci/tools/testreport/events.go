// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// event is what `go test -json` prints; see `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64
	FailedBuild string
}

// collector gathers the events of one `go test`.
type collector struct {
	stage  *stage
	out    io.Writer
	output map[string][]string // what a test or package said, by its key
	failed map[string]int      // failed tests of a package
	ran    map[string]int      // tests of a package
}

// runStage reads one `go test -json` to its end.
func runStage(name string, in io.Reader, out io.Writer, now func() time.Time) error {
	c := &collector{
		stage: &stage{Name: name, Start: now()}, out: out,
		output: map[string][]string{}, failed: map[string]int{}, ran: map[string]int{},
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			// Not an event: the go command speaks of itself.
			fmt.Fprintln(out, lines.Text())
			continue
		}
		c.add(e)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading test events: %w", err)
	}
	s := c.stage
	s.Seconds = now().Sub(s.Start).Seconds()
	if s.Passed+s.Failed == 0 {
		s.Failed, s.Failures = 1, append(s.Failures, name+": no test was run")
		fmt.Fprintf(out, "FAIL  %s: no test was run\n", name)
	}
	if err := s.keep(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d passed, %d failed, %d skipped in %.1f s\n", name, s.Passed, s.Failed, s.Skipped, s.Seconds)
	if s.Failed > 0 {
		return errFailed
	}
	return nil
}

func (c *collector) add(e event) {
	switch e.Action {
	case "build-output":
		key := "build " + e.ImportPath
		c.output[key] = append(c.output[key], e.Output)
	case "output":
		key := e.Package + " " + e.Test
		c.output[key] = append(c.output[key], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			c.packageDone(e)
		} else {
			c.testDone(e)
		}
	}
}

func (c *collector) testDone(e event) {
	name := e.Package + " " + e.Test
	said := c.output[name]
	delete(c.output, name)
	c.ran[e.Package]++
	for _, text := range figures(said) {
		c.stage.Figures = append(c.stage.Figures, figure{Test: short(name), Figure: text})
		fmt.Fprintf(c.out, "figure  %s: %s\n", short(name), text)
	}
	switch e.Action {
	case "pass":
		c.stage.Passed++
	case "skip":
		c.stage.Skipped++
		reason := skipReason(said)
		c.stage.Skips = append(c.stage.Skips, note{Test: short(name), Reason: reason})
		fmt.Fprintf(c.out, "skip  %s: %s\n", short(name), reason)
	case "fail":
		c.failed[e.Package]++
		c.stage.Failed++
		c.stage.Failures = append(c.stage.Failures, short(name))
		fmt.Fprintf(c.out, "FAIL  %s (%.2f s)\n%s", short(name), e.Elapsed, strings.Join(said, ""))
	}
}

// packageDone counts a package that failed although none of its tests did: it
// did not build, panicked or ran out of time.
func (c *collector) packageDone(e event) {
	key := e.Package + " "
	said := c.output[key]
	delete(c.output, key)
	switch {
	case e.Action == "fail" && c.failed[e.Package] == 0:
		c.stage.Failed++
		c.stage.Failures = append(c.stage.Failures, short(e.Package))
		fmt.Fprintf(c.out, "FAIL  %s\n%s%s", short(e.Package), strings.Join(c.output["build "+e.FailedBuild], ""), strings.Join(said, ""))
		// A test that panicked or hung never ends; what it said tells why.
		for name, text := range c.output {
			if strings.HasPrefix(name, key) {
				fmt.Fprintf(c.out, "      %s did not end\n%s", short(name), strings.Join(text, ""))
			}
		}
	case e.Action == "fail":
		fmt.Fprintf(c.out, "FAIL  %s: %d failed (%.1f s)\n", short(e.Package), c.failed[e.Package], e.Elapsed)
	case c.ran[e.Package] > 0:
		fmt.Fprintf(c.out, "ok    %s: %d tests (%.1f s)\n", short(e.Package), c.ran[e.Package], e.Elapsed)
	}
}

const modulePrefix = "github.com/millrace-project/millrace/"

func short(name string) string { return strings.TrimPrefix(name, modulePrefix) }

// location is what t.Skip puts before its text.
var location = regexp.MustCompile(`^\s*\S+\.go:\d+:\s*`)

// skipReason is what a test said when it skipped itself.
func skipReason(said []string) string {
	var parts []string
	for _, line := range said {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "=== ") || strings.HasPrefix(trimmed, "--- ") {
			continue
		}
		parts = append(parts, location.ReplaceAllString(trimmed, ""))
	}
	if len(parts) == 0 {
		return "no reason given"
	}
	return strings.Join(parts, " ")
}

// figureMark begins a line that a test logs to be kept, also if it passes: a
// seed, a count, a time.
const figureMark = "figure: "

// figures are the marked lines of what a test said.
func figures(said []string) []string {
	var marked []string
	// A long line comes in several events.
	for line := range strings.Lines(strings.Join(said, "")) {
		text := location.ReplaceAllString(strings.TrimSpace(line), "")
		if text, ok := strings.CutPrefix(text, figureMark); ok {
			marked = append(marked, strings.TrimSpace(text))
		}
	}
	return marked
}
