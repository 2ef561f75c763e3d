// SPDX-License-Identifier: Apache-2.0

// Command millrace-probe makes traffic inside a testbed cluster. It serves
// echo servers and opens client sockets as it is told over a unix socket; see
// package probe for the calls.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"

	"github.com/millrace-project/millrace/test/probe"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "millrace-probe:", err)
		os.Exit(1)
	}
}

func run() error {
	name := flag.String("name", "", "name that the echo servers answer with")
	control := flag.String("control", "", "path of the unix socket to take calls on")
	flag.Parse()
	if *control == "" || *name == "" || flag.NArg() > 0 {
		return errors.New("usage: millrace-probe -name NAME -control PATH")
	}
	listener, err := net.Listen("unix", *control)
	if err != nil {
		return fmt.Errorf("take calls: %w", err)
	}
	return probe.NewProber(*name).Serve(listener)
}
