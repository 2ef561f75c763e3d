// SPDX-License-Identifier: Apache-2.0

// Millrace-bench measures Millrace against kube-proxy and the bare network; see
// package bench. Run as "millrace-bench serve" or "millrace-bench load" it is
// one end of the traffic it measures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millrace-project/millrace/test/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench.Main(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "millrace-bench:", err)
		stop()
		os.Exit(1)
	}
}
