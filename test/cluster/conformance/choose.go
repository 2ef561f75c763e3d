// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/millrace-project/millrace/test/cluster"
	"github.com/millrace-project/millrace/test/kube/controlplane"
)

//go:embed excluded.yaml
var excludedYAML []byte

// Exclusion says why tests are not run.
type Exclusion struct {
	// Match is a regular expression that is looked for in a test's name.
	Match string `json:"match"`
	// Reason is why those tests are not run.
	Reason string `json:"reason"`
	// Unless is the family of clusters that they are run on after all.
	Unless cluster.Family `json:"unless"`

	match *regexp.Regexp
}

// Test is one of Kubernetes' end-to-end tests.
type Test struct {
	// Name in full, "[sig-network] Services should ...".
	Name string
	// Labels, for instance "sig-network", "Conformance", "Serial".
	Labels []string
	// Excluded is why the test is not run; empty if it is.
	Excluded string
	unless   cluster.Family
}

// runsOn tells whether the test is run on clusters of a family.
func (t *Test) runsOn(family cluster.Family) bool {
	return t.Excluded == "" || t.unless != "" && t.unless == family
}

// Conformance tells whether every cluster has to pass the test.
func (t *Test) Conformance() bool { return slices.Contains(t.Labels, "Conformance") }

// alone tells whether the test must not run beside others.
func (t *Test) alone() bool {
	return slices.Contains(t.Labels, "Serial") || slices.Contains(t.Labels, "Disruptive") ||
		strings.Contains(t.Name, "[Serial]") || strings.Contains(t.Name, "[Disruptive]")
}

// List returns the tests of sig-network, sorted by name, with what is excluded
// marked. It fails for an exclusion that matches no test or a conformance test.
func List(ctx context.Context) ([]Test, error) {
	exclusions, err := exclusions()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program, err := controlplane.Binary("e2e.test")
	if err != nil {
		return nil, err
	}
	report := filepath.Join(dir, "list.json")
	cmd := exec.CommandContext(ctx, program, "--ginkgo.dry-run", "--ginkgo.no-color", `--ginkgo.label-filter=sig-network`, "--ginkgo.json-report="+report)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("asking for the tests that there are: %w\n%s", err, tail(string(out), 2000))
	}
	specs, err := readReport(report)
	if err != nil {
		return nil, err
	}
	var tests []Test
	for _, s := range specs {
		if s.State != "passed" || !strings.HasPrefix(s.name(), "[sig-network]") {
			continue // filtered out, or no test but its surroundings
		}
		tests = append(tests, Test{Name: s.name(), Labels: s.labels()})
	}
	if len(tests) == 0 {
		return nil, errors.New("there is no test of sig-network")
	}
	slices.SortFunc(tests, func(a, b Test) int { return strings.Compare(a.Name, b.Name) })
	return tests, exclude(tests, exclusions)
}

func exclusions() ([]Exclusion, error) {
	var list []Exclusion
	if err := yaml.UnmarshalStrict(excludedYAML, &list); err != nil {
		return nil, fmt.Errorf("excluded.yaml: %w", err)
	}
	for i := range list {
		e := &list[i]
		var err error
		if e.match, err = regexp.Compile(e.Match); err != nil {
			return nil, fmt.Errorf("excluded.yaml, entry %d, field match: %w", i+1, err)
		}
		if e.Match == "" || e.Reason == "" {
			return nil, fmt.Errorf("excluded.yaml, entry %d: match and reason are both needed", i+1)
		}
	}
	return list, nil
}

// exclude marks what is excluded.
func exclude(tests []Test, exclusions []Exclusion) error {
	var wrong []error
	for _, e := range exclusions {
		found := false
		for i := range tests {
			t := &tests[i]
			if !e.match.MatchString(t.Name) {
				continue
			}
			found = true
			if t.Conformance() {
				wrong = append(wrong, fmt.Errorf("excluded.yaml: %q matches the conformance test %q", e.Match, t.Name))
			}
			if t.Excluded == "" {
				t.Excluded, t.unless = e.Reason, e.Unless
			}
		}
		if !found {
			wrong = append(wrong, fmt.Errorf("excluded.yaml: %q matches no test", e.Match))
		}
	}
	return errors.Join(wrong...)
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}
