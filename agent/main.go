// SPDX-License-Identifier: Apache-2.0

// Command millrace-agent programs a node's kernel with what Millrace's
// calculators compute for it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace-project/millrace/agent/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	code := command.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
