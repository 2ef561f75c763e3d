// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/test/kernels/machine"
)

// instructionsFile holds what each kernel's verifier made of each program when
// somebody last looked, by the kernel's series and the program's name.
const instructionsFile = "instructions.json"

// recordVariable in the environment makes the tests write the file anew.
const recordVariable = "MILLRACE_RECORD_INSTRUCTIONS"

// growth is the most, in per cent, by which a count may differ from the record.
const growth = 10

// counts are those of one program.
type counts struct {
	Instructions int `json:"instructions"`
	Verified     int `json:"verified"`
}

type recorded map[string]map[string]counts

func readRecorded(t *testing.T) recorded {
	t.Helper()
	text, err := os.ReadFile(instructionsFile)
	if errors.Is(err, os.ErrNotExist) {
		return recorded{}
	}
	var r recorded
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// preflightCounts reads the programs of `millrace-agent preflight -o json`.
func preflightCounts(output []byte) (kernel string, programs map[string]counts, err error) {
	var report struct {
		Kernel   string
		Programs []struct {
			Name                               string
			Instructions, VerifiedInstructions int
		}
	}
	if err := json.Unmarshal(output, &report); err != nil {
		return "", nil, fmt.Errorf("preflight's report: %w: %s", err, output)
	}
	programs = map[string]counts{}
	for _, p := range report.Programs {
		programs[p.Name] = counts{p.Instructions, p.VerifiedInstructions}
	}
	return report.Kernel, programs, nil
}

// checkInstructions compares counts with the record: what a change costs is seen
// when it is made, and not when a verifier has had enough of it.
func checkInstructions(t *testing.T, series string, now map[string]counts) {
	t.Helper()
	all := readRecorded(t)
	if os.Getenv(recordVariable) != "" {
		all[series] = now
		text, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(instructionsFile, append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, difference := range differences(all[series], now) {
		t.Errorf("kernel %s: %s; if that is meant, `make record-instructions` records it", series, difference)
	}
}

// differences tells where counts are not about what they were.
func differences(before, now map[string]counts) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		was, ok := before[name]
		if !ok {
			list = append(list, name+" is not in the record")
			continue
		}
		for _, c := range []struct {
			what     string
			was, now int
		}{{"instructions", was.Instructions, now[name].Instructions}, {"verified instructions", was.Verified, now[name].Verified}} {
			if c.now*100 > c.was*(100+growth) || c.now*100 < c.was*(100-growth) {
				list = append(list, fmt.Sprintf("%s has %d %s and had %d, more than %d %% off", name, c.now, c.what, c.was, growth))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, ok := now[name]; !ok {
			list = append(list, name+" is in the record and is no more")
		}
	}
	return list
}

func TestDifferences(t *testing.T) {
	before := map[string]counts{"same": {100, 1000}, "grew": {100, 1000}, "shrank": {100, 1000}, "gone": {1, 1}}
	now := map[string]counts{"same": {110, 900}, "grew": {100, 1101}, "shrank": {89, 1000}, "new": {1, 1}}
	got := strings.Join(differences(before, now), "\n")
	for _, want := range []string{
		"grew has 1101 verified instructions and had 1000", "shrank has 89 instructions and had 100",
		"new is not in the record", "gone is in the record",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if strings.Contains(got, "same") || strings.Count(got, "\n") != 3 {
		t.Errorf("got %s", got)
	}
}

// replayPreflight checks what preflight said in a guest.
func replayPreflight(t *testing.T, k kernel, r *machine.Result) {
	if k.refused {
		if r.Status != 1 {
			t.Errorf("status %d, want 1, as this kernel is to be refused", r.Status)
		}
		return
	}
	if r.Status != 0 {
		t.Fatalf("status %d: %s", r.Status, r.Output)
	}
	_, programs, err := preflightCounts(r.Output)
	if err != nil {
		t.Fatal(err)
	}
	checkInstructions(t, k.series, programs)
}

// TestInstructionsHere compares the counts of this machine's own kernel, if they
// are recorded.
func TestInstructionsHere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading programs needs root")
	}
	output, err := exec.Command(filepath.Join(programDir(t), "millrace-agent"), "preflight", "-o", "json").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	kernel, programs, err := preflightCounts(output)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(kernel, ".", 3)
	series := strings.Join(parts[:min(2, len(parts))], ".")
	if readRecorded(t)[series] == nil && os.Getenv(recordVariable) == "" {
		t.Skipf("no counts of kernel %s, this machine's, are recorded", series)
	}
	checkInstructions(t, series, programs)
}
