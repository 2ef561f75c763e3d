// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Widths of the columns; longer text pushes the rest of its line.
const (
	whatWidth     = 48
	expectedWidth = 38
)

// report prints what was expected and what was seen.
type report struct {
	out    io.Writer
	color  bool
	began  time.Time
	checks int
	failed int
	steps  int
}

func newReport(out *os.File) *report {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &report{out: out, color: err == nil, began: time.Now()}
}

// paint colours text on a terminal.
func (r *report) paint(code, text string) string {
	if !r.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// step begins a part of the demo.
func (r *report) step(title string) {
	r.steps++
	fmt.Fprintf(r.out, "\n%s\n", r.paint("1", fmt.Sprintf("%2d. %s", r.steps, title)))
	fmt.Fprintf(r.out, "    %s\n", r.paint("2", "     "+pad("what", whatWidth)+"  "+pad("expected", expectedWidth)+"  seen"))
}

// note prints a remark.
func (r *report) note(format string, args ...any) {
	fmt.Fprintf(r.out, "    %s\n", r.paint("2", fmt.Sprintf(format, args...)))
}

// check prints one line and counts it.
func (r *report) check(what, expected, seen string, ok bool) {
	r.checks++
	mark := r.paint("32", "ok  ")
	if !ok {
		r.failed++
		mark = r.paint("31", "FAIL")
		seen = r.paint("31", seen)
	}
	fmt.Fprintf(r.out, "    %s %s  %s  %s\n", mark, pad(what, whatWidth), pad(expected, expectedWidth), seen)
}

// equal is check for text that has to be the same.
func (r *report) equal(what, expected, seen string) { r.check(what, expected, seen, expected == seen) }

// problem is check for something that had to be done and could not be.
func (r *report) problem(what string, err error) {
	r.check(what, "done", strings.ReplaceAll(err.Error(), "\n", "\n         "), false)
}

// summary ends the report.
func (r *report) summary() {
	took := time.Since(r.began).Round(time.Second)
	if r.failed == 0 {
		fmt.Fprintf(r.out, "\n%s\n", r.paint("1;32", fmt.Sprintf("All %d checks as expected, in %v.", r.checks, took)))
		return
	}
	fmt.Fprintf(r.out, "\n%s\n", r.paint("1;31", fmt.Sprintf("%d of %d checks differ from what was expected (%v).", r.failed, r.checks, took)))
}

func pad(text string, width int) string {
	return text + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}
