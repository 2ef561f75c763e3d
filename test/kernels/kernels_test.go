// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-project/millrace/test/kernels/guest"
	"github.com/millrace-project/millrace/test/kernels/machine"
)

// TestKernels runs what is to be run on each kernel there. Every test of a
// guest is a sub-test here, under the kernel's series and the package's name.
func TestKernels(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: virtual machines take minutes")
	}
	programs := compile(t)
	for _, k := range kernels {
		t.Run(k.series, func(t *testing.T) { runKernel(t, k.chosen(), programs) })
	}
}

// limit is how long a machine may take: far longer than it does, for machines
// that are slow or busy.
const limit = 10 * time.Minute

func runKernel(t *testing.T, k kernel, programs string) {
	dir := filepath.Join(cacheDir(t), "kernels", k.series)
	name, err := os.ReadFile(filepath.Join(dir, "package"))
	if err != nil {
		t.Fatalf("kernel %s is not in the cache; `make guest-kernels` fetches it: %v", k.series, err)
	}
	t.Logf("figure: package %s", strings.TrimSpace(string(name)))
	work := t.TempDir()
	initrd := filepath.Join(work, "initrd")
	if err := k.image(initrd, dir, programs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	begun := time.Now()
	m := machine.Machine{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: initrd, Dir: work, Memory: 2048, Threads: 2}
	if keep := os.Getenv("MILLRACE_KERNELS_KEEP"); keep != "" {
		m.Keep = filepath.Join(keep, k.series)
	}
	outcome, err := m.Run(ctx, func(r guest.Report) {
		switch r.Kind {
		case guest.KindBoot:
			t.Logf("figure: %5.1f s: kernel %s is up", time.Since(begun).Seconds(), r.Text)
		case guest.KindEnd:
			t.Logf("figure: %5.1f s: %s has ended with status %d", time.Since(begun).Seconds(), r.Run, r.Status)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range outcome.Results {
		t.Run(r.Run, func(t *testing.T) {
			if r.Run == preflightRun {
				replayPreflight(t, k, r)
			} else {
				replayRun(t, r)
			}
		})
	}
	if outcome.Err != nil {
		t.Errorf("%v; the console ends with:\n%s", outcome.Err, tail(outcome.Console, 60))
	}
	for _, line := range strings.Split(outcome.Console, "\n") {
		if complains(line) {
			t.Errorf("the kernel complains:\n%s", tail(outcome.Console, 60))
			break
		}
	}
	if len(outcome.Results) <= len(k.runs) && outcome.Err == nil {
		t.Errorf("%d of %d programs were run", len(outcome.Results), len(k.runs)+1)
	}
}

// complains tells whether a line of the console begins the kernel's account of
// something that must not happen.
func complains(line string) bool {
	for _, mark := range []string{"BUG:", "WARNING:", "Oops", "Kernel panic", "general protection fault", "refcount_t:", "unregister_netdevice: waiting"} {
		if strings.Contains(line, mark) {
			return true
		}
	}
	return false
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// replayRun makes sub-tests of the tests that ran in a guest.
func replayRun(t *testing.T, r *machine.Result) {
	tests, outside, err := r.Tests()
	if err != nil {
		t.Fatal(err)
	}
	if len(tests) == 0 {
		t.Errorf("no test was run; the program said:\n%s", tail(string(r.Output), 40))
	}
	for _, one := range tests {
		replay(t, one)
	}
	if (!r.Ended || r.Status != 0) && !t.Failed() {
		t.Errorf("the program ended with status %d and said:\n%s", r.Status, tail(outside, 40))
	}
}

func replay(t *testing.T, one *machine.Test) {
	t.Run(one.Name, func(t *testing.T) {
		for _, sub := range one.Tests {
			replay(t, sub)
		}
		switch one.Action {
		case "pass":
		case "skip":
			t.Skip(skipReason(one.Output))
		case "fail":
			t.Error("\n" + one.Output)
		default:
			t.Error("did not end\n" + one.Output)
		}
	})
}

// skipReason is what a test said, without where it said it.
func skipReason(output string) string {
	for _, line := range strings.Split(output, "\n") {
		if _, reason, ok := strings.Cut(strings.TrimSpace(line), ".go:"); ok {
			if _, reason, ok = strings.Cut(reason, ": "); ok {
				return reason
			}
		}
	}
	return "no reason given"
}

func cacheDir(t *testing.T) string {
	if dir := os.Getenv("MILLRACE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "millrace")
}

// planText is a plan as the guest reads it.
func planText(plan guest.Plan) ([]byte, error) {
	text, err := json.MarshalIndent(plan, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the plan: %w", err)
	}
	return text, nil
}
