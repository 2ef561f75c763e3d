// SPDX-License-Identifier: Apache-2.0

// Command millracectl shows what Millrace's agents and calculators know and
// hold.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/millrace-project/millrace/services/internal/buildinfo"
	"github.com/millrace-project/millrace/services/millracectl/internal/ctl"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	app := ctl.App{
		Version: buildinfo.Version(),
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Getenv:  os.Getenv,
		Now:     time.Now,
	}
	code := app.Run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
