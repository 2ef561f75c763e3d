// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

// Outcome is what became of a test.
type Outcome string

// Outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Result is what became of a test, and why.
type Result struct {
	Test
	Outcome Outcome
	// Detail is the reason of a skip, or the failure.
	Detail string
	// Took is how long the test ran.
	Took time.Duration
}

// Options say how tests are run.
type Options struct {
	// Dir is where each process's log and report go.
	Dir string
	// Processes is how many run tests at once; default 3. Tests that must not
	// run beside others come afterwards, one by one.
	Processes int
	// Done is told of each result that is known, one after another; nobody if nil.
	Done func(Result)
}

// Run runs tests that are not excluded there against a cluster. The error tells of
// what kept them from being run; a test that failed is a result.
func Run(ctx context.Context, c *cluster.Cluster, tests []Test, opts Options) ([]Result, error) {
	if opts.Processes == 0 {
		opts.Processes = 3
	}
	if opts.Done == nil {
		opts.Done = func(Result) {}
	}
	dir, err := filepath.Abs(opts.Dir) // the processes run in it
	if err != nil {
		return nil, fmt.Errorf("directory for reports: %w", err)
	}
	opts.Dir = dir
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for reports: %w", err)
	}
	var results []Result
	shares := make([][]Test, opts.Processes)
	var alone []Test
	next := 0
	for _, t := range tests {
		switch {
		case !t.runsOn(c.Options().Family):
			r := Result{Test: t, Outcome: Skipped, Detail: t.Excluded}
			results = append(results, r)
			opts.Done(r)
		case t.alone():
			alone = append(alone, t)
		default:
			shares[next%len(shares)] = append(shares[next%len(shares)], t)
			next++
		}
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	for i, share := range shares {
		group.Go(func() {
			ran := runShare(ctx, c, share, filepath.Join(opts.Dir, "process-"+strconv.Itoa(i+1)))
			mu.Lock()
			defer mu.Unlock()
			for _, r := range ran {
				opts.Done(r)
			}
			results = append(results, ran...)
		})
	}
	group.Wait()
	for _, r := range runShare(ctx, c, alone, filepath.Join(opts.Dir, "alone")) {
		opts.Done(r)
		results = append(results, r)
	}
	return results, ctx.Err()
}

// runShare runs tests one after another in a process of their own.
func runShare(ctx context.Context, c *cluster.Cluster, tests []Test, path string) []Result {
	if len(tests) == 0 {
		return nil
	}
	results := make([]Result, 0, len(tests))
	all := func(err error) []Result {
		for _, t := range tests {
			results = append(results, Result{Test: t, Outcome: Failed, Detail: err.Error()})
		}
		return results
	}
	program, err := controlplane.Binary("e2e.test")
	if err != nil {
		return all(err)
	}
	log, err := os.Create(path + ".log")
	if err != nil {
		return all(err)
	}
	defer log.Close()
	report := path + ".json"
	if err := os.Remove(report); err != nil && !os.IsNotExist(err) {
		return all(err)
	}
	args := []string{
		program, "--kubeconfig=" + c.Kubeconfig(), "--host=" + c.APIServer(), "--provider=skeleton", "--num-nodes=" + strconv.Itoa(len(c.Nodes())),
		"--ginkgo.no-color", "--ginkgo.v", "--ginkgo.timeout=2h", "--ginkgo.json-report=" + report,
	}
	for _, t := range tests {
		// The suite's own name stands before that of the test.
		args = append(args, "--ginkgo.focus="+regexp.QuoteMeta(t.Name)+"$")
	}
	// Nodes have the tests' images under names of their own.
	images := path + ".images.yaml"
	if err := os.WriteFile(images, fmt.Appendf(nil, "promoterE2eRegistry: %[1]s\ngcRegistry: %[1]s\n", cluster.Registry), 0o644); err != nil {
		return all(err)
	}
	cmd := c.OutsideCommand(ctx, args...)
	cmd.Env = append(os.Environ(), "KUBE_TEST_REPO_LIST="+images)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, filepath.Dir(path)
	ended := cmd.Run()
	specs, err := readReport(report)
	if err != nil {
		return all(fmt.Errorf("%s.log: the tests ended (%v) without a report: %w", path, ended, err))
	}
	byName := map[string]*spec{}
	for i := range specs {
		byName[specs[i].name()] = &specs[i]
	}
	for _, t := range tests {
		results = append(results, result(t, byName[t.Name]))
	}
	return results
}

func result(t Test, s *spec) Result {
	if s == nil {
		return Result{Test: t, Outcome: Failed, Detail: "not in the report"}
	}
	r := Result{Test: t, Took: time.Duration(s.RunTime), Outcome: Failed, Detail: s.Failure.Message}
	switch s.State {
	case "passed":
		r.Outcome = Passed
	case "skipped", "pending":
		if r.Detail == "" {
			r.Detail = "not run (" + s.State + ")" // focus did not choose it
		} else {
			r.Outcome = Skipped
		}
	default:
		r.Detail = fmt.Sprintf("%s: %s (%s:%d)", s.State, r.Detail, filepath.Base(s.Failure.Location.FileName), s.Failure.Location.LineNumber)
	}
	return r
}
