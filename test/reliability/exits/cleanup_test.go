// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/millrace-project/millrace/test/reliability"
)

// cleanup runs the agent's cleanup, and tells whether it was killed.
func (w *world) cleanup(t *testing.T) bool {
	t.Helper()
	under, err := w.supervisor.Command()
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.node.Start("cleanup", append(under, binaries.Agent, "cleanup", "--bpf-dir", w.node.BPFDir, "--state-dir", w.node.StateDir)...)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if w.supervisor.Killed() == nil && p.Err() != nil {
		t.Fatalf("cleanup: %v\n%s", p.Err(), p.LogTail(10))
	}
	return w.supervisor.Killed() != nil
}

const liberal = "net/netfilter/nf_conntrack_tcp_be_liberal"

// setting reads the connection tracking's setting in the node's namespace.
func (w *world) setting(t *testing.T) (value string) {
	t.Helper()
	err := w.node.Do(func() error {
		data, err := os.ReadFile(filepath.Join("/proc/sys", liberal))
		value = strings.TrimSpace(string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// nothingLeft tells what a cleanup has left.
func (w *world) nothingLeft(t *testing.T) error {
	t.Helper()
	var left error
	if _, err := os.Lstat(w.node.BPFDir); !errors.Is(err, os.ErrNotExist) {
		left = errors.Join(left, fmt.Errorf("%s is still there (%v)", w.node.BPFDir, err))
	}
	if value := w.setting(t); value != "0" {
		left = errors.Join(left, fmt.Errorf("%s is %s", liberal, value))
	}
	cgroup, err := os.Open(w.node.NodeCgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroup.Close()
	for hook := ebpf.AttachCGroupInetIngress; hook <= ebpf.AttachCgroupInet6GetSockname; hook++ {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: hook})
		if err == nil && len(found.Programs) > 0 {
			left = errors.Join(left, fmt.Errorf("%d programs at %s of the cgroup", len(found.Programs), hook))
		}
	}
	err = w.node.Do(func() error {
		devices, err := netlink.LinkList()
		for _, device := range devices {
			left = errors.Join(left, leftOn(device))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// leftOn tells which programs are attached to a device.
func leftOn(device netlink.Link) (left error) {
	for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		found, err := link.QueryPrograms(link.QueryOptions{Target: device.Attrs().Index, Attach: hook})
		if err == nil && len(found.Programs) > 0 {
			left = errors.Join(left, fmt.Errorf("%d programs at %s of %s", len(found.Programs), hook, device.Attrs().Name))
		}
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		filters, err := netlink.FilterList(device, parent)
		if err == nil && len(filters) > 0 {
			left = errors.Join(left, fmt.Errorf("%d filters at %x of %s", len(filters), parent, device.Attrs().Name))
		}
	}
	return left
}

// TestExitsOfCleanup kills a cleanup before its n-th call. Repeated it leaves
// nothing; and an agent that is killed at its first start leaves nothing that
// the next one, or a cleanup, does not find.
func TestExitsOfCleanup(t *testing.T) {
	r := reliability.Random(t)
	w := start(t, settings{})
	sum := newTally()
	w.exitsOfCleanup(t, r, sum, 8)
	sum.tell(t)
}

func (w *world) exitsOfCleanup(t *testing.T, r *rand.Rand, sum *tally, count int) {
	t.Helper()
	w.kill(t)
	w.supervisor.Set(nil)
	w.cleanup(t)
	calls := w.supervisor.Count()
	if err := w.nothingLeft(t); err != nil {
		t.Fatalf("after a cleanup: %v", err)
	}
	w.supervisor.Set(nil)
	w.launch(t)
	w.mustConverge(t, "counting the calls of a first start")
	starting := w.supervisor.Count()
	t.Logf("figure: a cleanup makes %d calls, a first start %d", calls, starting)
	cleanups, starts := sample(r, calls, count), sample(r, starting, count)
	for i := range max(len(cleanups), len(starts)) {
		n := cleanups[i%len(cleanups)]
		w.kill(t)
		w.supervisor.KillBefore(n)
		at := fmt.Sprintf("cleanup with an exit before call %d", n)
		if w.cleanup(t) {
			call := w.supervisor.Killed()
			sum.note(call)
			at = fmt.Sprintf("cleanup, killed before call %d, %s", n, call)
		}
		if i%2 == 0 { // else an agent starts on what is half removed
			w.repeatCleanup(t, at)
		}
		w.exitAtFirstStart(t, sum, at, starts[i%len(starts)], i%3 == 0)
	}
}

// repeatCleanup runs a cleanup that nothing disturbs.
func (w *world) repeatCleanup(t *testing.T, when string) {
	t.Helper()
	w.supervisor.Set(nil)
	w.cleanup(t)
	if err := w.nothingLeft(t); err != nil {
		t.Fatalf("%s, and repeated: %v", when, err)
	}
}

// exitAtFirstStart kills an agent at its first start, cleans up after it or not,
// and starts another.
func (w *world) exitAtFirstStart(t *testing.T, sum *tally, when string, n int, clean bool) {
	t.Helper()
	w.supervisor.KillBefore(n)
	w.launch(t)
	at := fmt.Sprintf("%s; start with an exit before call %d", when, n)
	if call, _ := w.died(t, at); call != nil {
		sum.note(call)
		at += ", " + call.String()
		if clean {
			w.repeatCleanup(t, at)
		}
	}
	if w.agent.Process.Running() != nil {
		w.launch(t)
	}
	w.mustConverge(t, at+", restarted")
	k, err := readKernel(w.node)
	if err == nil {
		err = w.ask(k, w.now, w.now)
	}
	if err != nil {
		t.Fatalf("%s: %v", at, err)
	}
}
