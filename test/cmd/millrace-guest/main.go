// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command millrace-guest is the first process of the virtual machines in which
// the tests run on other kernels.
package main

import (
	"fmt"
	"os"

	"github.com/millrace-project/millrace/test/kernels/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "millrace-guest: this is the first process of a virtual machine, and does nothing elsewhere")
		os.Exit(2)
	}
	guest.Main()
}
