// SPDX-License-Identifier: Apache-2.0

package exits

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	calculatorv1 "github.com/millrace-project/millrace/proto/millrace/calculator/v1"

	"github.com/millrace-project/millrace/test/reliability/syscalls"
	"github.com/millrace-project/millrace/test/testbed"
)

// refusal is a kind of calls that the kernel refuses, and what comes of it.
type refusal struct {
	errno unix.Errno
	// what calls are refused.
	what string
	is   func(*syscalls.Call) bool
	// prepare comes before, and change is what then cannot be programmed.
	prepare, change func(t *testing.T, w *world)
	// reason and key are of the error in status and acknowledgement; if key is
	// empty it is a problem of the node, and reason its text.
	reason, key string
	// later is the problem's text once the agent has been started anew and does
	// not know whose it is; empty if it does.
	later string
}

// writes are all changes of a map but deletions; of frontends, those that touch
// the fresh service.
func writes(table string) func(*syscalls.Call) bool {
	return func(c *syscalls.Call) bool {
		return c.Changes(table) && !strings.Contains(c.Name, "DELETE") && touchesFresh(c)
	}
}

func deletes(table string) func(*syscalls.Call) bool {
	return func(c *syscalls.Call) bool {
		return c.Changes(table) && strings.Contains(c.Name, "DELETE") && touchesFresh(c)
	}
}

func touchesFresh(c *syscalls.Call) bool {
	if !strings.HasPrefix(c.Map, "frontends") {
		return true
	}
	s := service(lastNumber)
	port := s.Ports[0].NodePort
	return c.Touches(s.ClusterIPs[0].AsSlice()) || c.Touches(s.ClusterIPs[1].AsSlice()) || c.Touches([]byte{byte(port >> 8), byte(port)})
}

// comes adds the fresh service, goes takes it away; prepare makes it be there, or
// not, while nothing is refused yet.
func comes(t *testing.T, w *world) {
	after := w.now.clone()
	s := service(lastNumber, w.backends[2:4]...)
	after[s.Name] = s
	w.apply(t, after)
}

func goes(t *testing.T, w *world) {
	after := w.now.clone()
	delete(after, freshName)
	w.apply(t, after)
}

const (
	freshName = "svc-12"
	freshKey  = testbed.Namespace + "/" + freshName
)

// TestRefusedCalls lets the kernel refuse calls of one kind after another. The
// error names the object, the status, the calculator and the metrics tell of it,
// what else changes is programmed meanwhile, and the agent heals by itself when
// the kernel accepts such calls again; and so does one that is started meanwhile.
func TestRefusedCalls(t *testing.T) {
	w := start(t, settings{})
	w.startTraffic(t, w.now["svc-1"])
	attach := func(c *syscalls.Call) bool {
		// Not the question whether the kernel has tcx, which names no device there can be.
		return c.Name == "LINK_CREATE" && c.Attach == ebpf.AttachTCXIngress && c.Target < math.MaxInt32
	}
	pod := fmt.Sprintf("%s/pod-1-%d", testbed.Namespace, len(w.node.Pods)+1)
	nothing := func(*testing.T, *world) {}
	for _, c := range []refusal{
		{unix.E2BIG, "MAP_UPDATE ids", writes("ids"), goes, comes, "MAP_FULL", freshKey, ""},
		{unix.E2BIG, "MAP_UPDATE frontends_v4", writes("frontends_v4"), goes, comes, "MAP_FULL", freshKey, ""},
		{unix.EPERM, "MAP_DELETE frontends_v6", deletes("frontends_v6"), comes, goes, "MAP_WRITE", freshKey,
			"frontends of services that are no more could not be removed"},
		{unix.ENOMEM, "MAP_UPDATE backends_v6", writes("backends_v6"), goes, comes, "MAP_WRITE", freshKey, ""},
		{unix.ENOMEM, "MAP_UPDATE routes_v4", writes("routes_v4"), nothing, topologies[1].there, "routes could not be programmed", "", ""},
		{unix.EPERM, "MAP_DELETE routes_v4", deletes("routes_v4"), nothing, topologies[1].back, "routes could not be programmed", "", ""},
		{unix.EPERM, "LINK_CREATE", attach, nothing, topologies[0].there, "ATTACH_FAILED", pod, ""},
	} {
		t.Run(fmt.Sprintf("%s %s", c.what, unix.ErrnoName(c.errno)), func(t *testing.T) { w.refuse(t, c) })
	}
}

func (w *world) refuse(t *testing.T, c refusal) {
	c.prepare(t, w)
	w.mustConverge(t, "before")
	before := w.now
	w.supervisor.Set(func(call *syscalls.Call) syscalls.Verdict {
		if c.is(call) {
			return syscalls.Fail(c.errno)
		}
		return syscalls.Continue
	})
	defer w.supervisor.Set(nil)
	c.change(t, w)
	w.waitRefusal(t, c, "refused")
	w.changeOther(t, before)
	w.kill(t)
	w.launch(t)
	if c.later != "" {
		c.reason, c.key = c.later, ""
	}
	w.waitRefusal(t, c, "started while refused")
	w.supervisor.Set(nil)
	w.mustConverge(t, "not refused any more")
	w.checkTraffic(t, c.what)
}

// changeOther gives another service other node ports, which must be programmed
// although the fresh one cannot be; that one is as it was before, or after.
func (w *world) changeOther(t *testing.T, before model) {
	t.Helper()
	next := w.now.clone()
	s := next["svc-2"]
	for i := range s.Ports {
		s.Ports[i].NodePort ^= 64
	}
	next["svc-2"] = s
	w.apply(t, next)
	undone := next.clone()
	delete(undone, freshName)
	if s, ok := before[freshName]; ok {
		undone[freshName] = s
	}
	err := testbed.Within(20*time.Second, func() error {
		k, err := readKernel(w.node)
		if err != nil {
			return err
		}
		if err := k.is(next.frontends(w.node), undone.frontends(w.node)); err != nil {
			return err
		}
		return w.ask(k, before, next)
	})
	if err != nil {
		t.Fatalf("another service, meanwhile: %v", err)
	}
}

// waitRefusal waits until status, calculator and metrics tell of the refusal.
func (w *world) waitRefusal(t *testing.T, c refusal, when string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := testbed.Eventually(ctx, func() error {
		if err := w.agent.Process.Running(); err != nil {
			return err
		}
		status, err := w.agent.GetStatus(ctx, &agentv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if c.key == "" {
			return w.told(ctx, c.reason)
		}
		named := func(text string) error {
			if !strings.Contains(text, c.key) || !strings.Contains(text, c.reason) {
				return fmt.Errorf("%q names not %s of %s", text, c.reason, c.key)
			}
			return nil
		}
		if err := named(fmt.Sprint(status.GetErrors())); err != nil {
			return err
		}
		nodes, err := w.stack.Calculator.ListNodes(ctx, &calculatorv1.ListNodesRequest{})
		if err != nil {
			return err
		}
		return named(fmt.Sprint(nodes.GetNodes()))
	})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
}
