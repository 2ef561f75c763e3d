// SPDX-License-Identifier: Apache-2.0

// Command millrace-calculator computes what every node of a Kubernetes cluster
// needs and streams it to the nodes' agents.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace-project/millrace/services/calculator/internal/command"
	"github.com/millrace-project/millrace/services/internal/buildinfo"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() {
	buildinfo.SetVersion(version)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	code := command.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
