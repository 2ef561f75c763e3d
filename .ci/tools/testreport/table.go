// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// printTable prints every stage kept in a directory, in the order they ran.
func printTable(dir string, out io.Writer) error {
	stages, err := readStages(dir)
	if err != nil {
		return err
	}
	if len(stages) == 0 {
		return errors.New("no stage was kept in " + dir)
	}
	var total stage
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "stage\tseconds\tpassed\tfailed\tskipped\t")
	for _, s := range stages {
		fmt.Fprintf(tw, "%s\t%.1f\t%d\t%d\t%d\t\n", s.Name, s.Seconds, s.Passed, s.Failed, s.Skipped)
		total.Seconds += s.Seconds
		total.Passed += s.Passed
		total.Failed += s.Failed
		total.Skipped += s.Skipped
	}
	fmt.Fprintf(tw, "total\t%.1f\t%d\t%d\t%d\t\n", total.Seconds, total.Passed, total.Failed, total.Skipped)
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	for _, s := range stages {
		for _, skip := range s.Skips {
			fmt.Fprintf(out, "skipped  %s: %s\n", skip.Test, skip.Reason)
		}
	}
	for _, s := range stages {
		for _, f := range s.Figures {
			fmt.Fprintf(out, "figure   %s: %s\n", f.Test, f.Figure)
		}
	}
	for _, s := range stages {
		for _, name := range s.Failures {
			fmt.Fprintf(out, "FAILED   %s (%s)\n", name, s.Name)
		}
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", total.Passed, total.Failed, total.Skipped)
	if total.Failed > 0 {
		return errFailed
	}
	return nil
}

func readStages(dir string) ([]*stage, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("listing stages: %w", err)
	}
	var stages []*stage
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a stage: %w", err)
		}
		s := &stage{}
		if err := json.Unmarshal(text, s); err != nil {
			return nil, fmt.Errorf("reading stage %s: %w", path, err)
		}
		stages = append(stages, s)
	}
	slices.SortFunc(stages, func(a, b *stage) int { return a.Start.Compare(b.Start) })
	return stages, nil
}
