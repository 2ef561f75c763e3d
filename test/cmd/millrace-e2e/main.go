// SPDX-License-Identifier: Apache-2.0

// Command millrace-e2e runs Kubernetes' own end-to-end tests of networking
// against the cluster that `make cluster` started, and prints by name what
// passed, failed and was skipped, with the reason. It ends with status 1 if a
// test failed. `make e2e` builds what it needs.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/cluster/conformance"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "millrace-e2e:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("millrace-e2e", flag.ContinueOnError)
	name := flags.String("name", "", "name of the cluster")
	focus := flags.String("focus", "", "regular expression that the names of tests must match")
	only := flags.Bool("conformance", false, "only what every cluster has to pass")
	list := flags.Bool("list", false, "print the names, and why tests are excluded, and run nothing")
	dir := flags.String("dir", "build/e2e", "where logs and reports of the tests go")
	processes := flags.Int("processes", 3, "how many tests run at once")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := regexp.Compile(*focus)
	if err != nil {
		return fmt.Errorf("--focus: %w", err)
	}
	tests, err := conformance.List(ctx)
	if err != nil {
		return err
	}
	tests = slices.DeleteFunc(tests, func(t conformance.Test) bool {
		return !chosen.MatchString(t.Name) || *only && !t.Conformance()
	})
	if len(tests) == 0 {
		return fmt.Errorf("no test matches %q", *focus)
	}
	if *list {
		for _, t := range tests {
			fmt.Println(t.Name)
			if t.Excluded != "" {
				fmt.Println("    excluded:", t.Excluded)
			}
		}
		return nil
	}
	c, err := cluster.Attach(*name)
	if err != nil {
		return err
	}
	began := time.Now()
	results, err := conformance.Run(ctx, c, tests, conformance.Options{Dir: *dir, Processes: *processes, Done: func(r conformance.Result) {
		if r.Outcome == conformance.Failed {
			fmt.Printf("failed   %s\n         %s\n", r.Name, strings.ReplaceAll(r.Detail, "\n", "\n         "))
		}
	}})
	if err != nil {
		return err
	}
	slices.SortStableFunc(results, func(a, b conformance.Result) int {
		return cmp.Or(cmp.Compare(a.Outcome, b.Outcome), strings.Compare(a.Name, b.Name))
	})
	count, required := map[conformance.Outcome]int{}, map[conformance.Outcome]int{}
	for _, r := range results {
		count[r.Outcome]++
		if r.Conformance() {
			required[r.Outcome]++
		}
		switch r.Outcome {
		case conformance.Skipped:
			fmt.Printf("skipped  %s (%s)\n", r.Name, strings.TrimSpace(r.Detail))
		default:
			fmt.Printf("%-8s %s (%.1f s)\n", r.Outcome, r.Name, r.Took.Seconds())
		}
	}
	fmt.Printf("\n%d passed, %d failed, %d skipped in %.0f s; of conformance %d of %d passed\n",
		count[conformance.Passed], count[conformance.Failed], count[conformance.Skipped], time.Since(began).Seconds(),
		required[conformance.Passed], required[conformance.Passed]+required[conformance.Failed]+required[conformance.Skipped])
	if n := count[conformance.Failed]; n > 0 {
		return fmt.Errorf("%d tests failed; their logs are in %s", n, *dir)
	}
	return nil
}
