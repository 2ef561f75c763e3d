// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// boots gives the agent a boot id that the test chooses, by a mount that only the
// agent sees.
func boots(t *testing.T) (under []string, reboot func()) {
	path := filepath.Join(t.TempDir(), "boot_id")
	boot := 0
	reboot = func() {
		boot++
		if err := os.WriteFile(path, fmt.Appendf(nil, "00000000-0000-0000-0000-%012d\n", boot), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reboot()
	return []string{"/usr/bin/unshare", "--mount", "/bin/sh", "-c",
		`mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`, path}, reboot
}

// TestReboot boots the node while its state directory is read-only: it serves all
// the same, from what calculators send; and what an earlier boot left in memory
// is not taken for the present.
func TestReboot(t *testing.T) {
	set, fallback := onDisk(t)
	under, reboot := boots(t)
	set.under = under
	w := start(t, set)
	onTheDisk := len(w.now)
	down := func() {
		w.kill(t)
		w.cleanup(t) // the kernel forgets
		reboot()
	}
	down()
	w.remount(t, unix.MS_RDONLY)
	w.apply(t, w.nextChange(t))
	w.launch(t)
	w.waitProblem(t, "booted with a read-only state directory", "read-only file system")
	w.withoutCalculator(t, "restarted after that without a calculator")

	left, err := filepath.Glob(filepath.Join(fallback, "*.log"))
	if err != nil || len(left) != 1 {
		t.Fatalf("in memory: %v, %v", left, err)
	}
	if err := w.stack.Calculator.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	down()
	w.launch(t)
	w.waitHeld(t, "booted anew without a calculator", onTheDisk)
	if err := w.stack.Calculator.Start(); err != nil {
		t.Fatal(err)
	}
	w.remount(t, 0)
	w.restart(t) // in a mount namespace in which it can be written
	w.mustConverge(t, "the state directory can be written again")
	w.withoutCalculator(t, "restarted at last")
}

// waitHeld waits until the agent holds that many services.
func (w *world) waitHeld(t *testing.T, when string, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := errors.New("no answer")
	for ctx.Err() == nil && err != nil {
		var status *agentv1.GetStatusResponse
		status, err = w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err == nil && status.GetHeld()["SERVICE"] != uint64(want) {
			err = fmt.Errorf("holds %v, want %d services", status.GetHeld(), want)
		}
	}
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
}

// TestDamagedLog damages the log of a killed agent in each way. Without a
// calculator the next one leaves the kernel as it is, which is newer than what is
// left of the log, and says why; traffic goes on, and with a calculator
// everything is as ever.
func TestDamagedLog(t *testing.T) {
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	for _, damage := range []struct {
		name, tells string
		do          func(log []byte) []byte
	}{
		{"a byte in the middle", "checksum differs", func(log []byte) []byte { log[len(log)/3] ^= 1; return log }},
		{"a length in the middle", "its checksum is that of", lengthen},
		{"another version's", "in format", func(log []byte) []byte { log[7] = '9'; return log }},
		{"no log", "no state log", func([]byte) []byte { return []byte("something else entirely") }},
		{"gone", "", func([]byte) []byte { return nil }},
	} {
		t.Run(damage.name, func(t *testing.T) {
			for range 3 {
				w.apply(t, w.nextChange(t))
				w.mustHave(t)
			}
			w.kill(t)
			if err := w.stack.Calculator.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(w.node.StateDir, "state.log")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage.do(data), 0o600); err != nil {
				t.Fatal(err)
			}
			w.launch(t)
			err = w.wait(time.Minute, func(ctx context.Context) error {
				status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
				if err != nil {
					return err
				}
				if problems := strings.Join(status.GetProblems(), "; "); !strings.Contains(problems, damage.tells) {
					return fmt.Errorf("problems %q, want %q", problems, damage.tells)
				}
				return w.metric("millrace_agent_in_sync 0")
			})
			if err != nil {
				t.Fatalf("without a calculator: %v", err)
			}
			w.away(t, "an agent runs, but no calculator", w.now, w.now)
			if err := w.stack.Calculator.Start(); err != nil {
				t.Fatal(err)
			}
			w.apply(t, w.nextChange(t))
			w.mustHave(t)
			w.restart(t)
			w.mustConverge(t, "restarted")
			w.checkTraffic(t, damage.name)
		})
	}
}

// lengthen flips a bit in the length of a log's second record, which then reaches
// far past the end, as one does that was never written in whole.
func lengthen(log []byte) []byte {
	const magic, header = 8, 8
	second := magic + header + int(binary.LittleEndian.Uint32(log[magic:]))
	log[second+3] ^= 1
	return log
}

// mustHave waits until the kernel is as the model says, whatever problems there are.
func (w *world) mustHave(t *testing.T) {
	t.Helper()
	err := w.wait(time.Minute, func(ctx context.Context) error {
		status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		return w.same(ctx, status)
	})
	if err != nil {
		t.Fatal(err)
	}
}
