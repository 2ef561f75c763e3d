// SPDX-License-Identifier: Apache-2.0

// Package guest is the first process of a virtual machine: it mounts what
// programs expect, loads modules, runs the programs of a plan one after
// another and reports their output on a serial line.
package guest

import "time"

// Places in the guest.
const (
	// PlanPath is where the plan is.
	PlanPath = "/plan.json"
	// ModuleDir is the directory of modules.
	ModuleDir = "/modules"
	// ResultsDevice is the serial line for [Report]s, one JSON object a line.
	// The console is another one, so that the kernel's words do not mix with
	// them.
	ResultsDevice = "/dev/ttyS1"
)

// Plan is what a guest does.
type Plan struct {
	// Modules are files of ModuleDir in the order in which they are loaded.
	Modules []string
	Runs    []Run
}

// Run is one program to run.
type Run struct {
	Name    string
	Path    string
	Args    []string
	Env     []string // added to the guest's own
	Dir     string
	Timeout time.Duration
}

// Kinds of reports.
const (
	KindBoot   = "boot"   // Text is the kernel's release
	KindStart  = "start"  // Run begins
	KindOutput = "output" // Data is what Run wrote
	KindEnd    = "end"    // Run has ended with Status
	KindError  = "error"  // the guest itself failed: Text
	KindDone   = "done"   // all runs have ended
)

// Report is one message from the guest.
type Report struct {
	Kind   string
	Run    string `json:",omitempty"`
	Data   []byte `json:",omitempty"`
	Status int    `json:",omitempty"`
	Text   string `json:",omitempty"`
}
