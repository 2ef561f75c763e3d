// SPDX-License-Identifier: Apache-2.0

// Command millrace-demo shows Millrace at work on a cluster of network
// namespaces. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace-project/millrace/test/demo"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "millrace-demo:", err)
		os.Exit(1)
	}
}

func run() error {
	keep := flag.Bool("keep", false, "leave the cluster up and tell what to try")
	down := flag.Bool("down", false, "remove a cluster that was left up")
	flag.Parse()
	if flag.NArg() > 0 || *keep && *down {
		return errors.New("usage: millrace-demo [--keep | --down]")
	}
	if *down {
		return demo.Down(os.Stdout)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return demo.Run(ctx, os.Stdout, *keep)
}
