// SPDX-License-Identifier: Apache-2.0

// Command testreport turns the stages of a test run into a report.
//
//	go test -json ... | testreport stage NAME
//
// reads the events of one `go test`, prints a line for each package and the
// output of what failed and what tests logged in lines that begin with
// "figure: ", and keeps these and the counts in build/test/NAME.json.
//
//	testreport check NAME COMMAND...
//
// runs a command that either works or does not, as a stage of one check.
//
//	testreport step NAME COMMAND...
//
// runs a command that prepares others; it is timed, and counted only if it fails.
//
//	testreport table
//
// prints every stage kept, with seconds, counts and each skip's reason, the
// figures, and "N passed, N failed, N skipped" as the last line.
//
// Each form exits with status 1 if anything failed.
package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// directory holds one file a stage.
const directory = "build/test"

// errFailed says that something that was tested failed; what has been printed.
var errFailed = errors.New("failed")

func main() {
	err := run(os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, errFailed):
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(2)
	}
}

func run(args []string) error {
	usage := errors.New("allowed are: stage NAME, check NAME COMMAND..., step NAME COMMAND..., table")
	if len(args) == 0 {
		return usage
	}
	switch {
	case args[0] == "stage" && len(args) == 2:
		return runStage(args[1], os.Stdin, os.Stdout, time.Now)
	case args[0] == "check" && len(args) > 2:
		return runCheck(args[1], args[2:], 1)
	case args[0] == "step" && len(args) > 2:
		return runCheck(args[1], args[2:], 0)
	case args[0] == "table" && len(args) == 1:
		return printTable(directory, os.Stdout)
	default:
		return usage
	}
}
