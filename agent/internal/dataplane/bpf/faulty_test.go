// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/bpf/layout"
)

// faulty fails to read routes and to delete frontends while told to.
type faulty struct {
	Tables
	reads, deletes error
}

func (f *faulty) ReadRoutes(family tables.Family, each func(tables.RouteEntry)) error {
	return errors.Join(f.reads, f.Tables.ReadRoutes(family, each))
}

func (f *faulty) DeleteFrontends(family tables.Family, keys []tables.FrontendKey) error {
	if f.deletes != nil && len(keys) > 0 {
		return f.deletes
	}
	return f.Tables.DeleteFrontends(family, keys)
}

// TestPruneAgain lets the first removal of stale frontends fail: it is told, their
// number stays taken although no flow names it, and a retry removes them.
func TestPruneAgain(t *testing.T) {
	n := newNode(t)
	stranger := layout.FrontendKeyV4{Addr: layout.V4(ip("10.77.0.1")), Port: layout.Port(77), Proto: 6}
	if err := n.kernel.V4.Frontends.Put(&stranger, &layout.Frontend{ServiceID: 99}); err != nil {
		t.Fatal(err)
	}
	owner, id := layout.NewIDKey("service-port", "gone"), uint32(99)
	if err := n.kernel.IDs.Put(&owner, &id); err != nil {
		t.Fatal(err)
	}
	n.start()
	broken := &faulty{Tables: n.plane.tables, deletes: errors.New("injected")}
	n.plane.tables = broken
	if err := n.plane.adopt(); err != nil {
		t.Fatal(err)
	}
	result := n.plane.Apply(context.Background(), dataplane.Change{InSync: true})
	if problems := fmt.Sprint(result.Report.GetProblems()); !result.Retry || !strings.Contains(problems, "injected") {
		t.Fatalf("retry %v, problems %s", result.Retry, problems)
	}
	forget := func() (kept bool) {
		n.plane.ForgetIDs(map[uint32]struct{}{id: {}})
		return n.kernel.IDs.Lookup(&owner, &id) == nil
	}
	if !forget() {
		t.Fatal("the number of a frontend that is there was given up")
	}
	broken.deletes = nil
	if result := n.plane.Retry(context.Background()); result.Retry || len(result.Report.GetProblems()) > 0 {
		t.Fatalf("still to be retried: %v", result.Report.GetProblems())
	}
	if forget() {
		t.Fatal("the number of nothing is still taken")
	}
	var v layout.Frontend
	if err := n.kernel.V4.Frontends.Lookup(&stranger, &v); err == nil {
		t.Fatal("the stale frontend is still there")
	}
}

// TestAdoptFails lets a repair's look at the maps fail half way: what was known
// before is known still.
func TestAdoptFails(t *testing.T) {
	n := newNode(t)
	n.give(true, cluster1()...)
	numbers, programmer := n.plane.ids, n.plane.services
	n.plane.tables = &faulty{Tables: n.plane.tables, reads: errors.New("injected")}
	if err := n.plane.adopt(); err == nil {
		t.Fatal("no error")
	}
	if n.plane.ids != numbers || n.plane.services != programmer {
		t.Fatal("half of what is known was replaced")
	}
}
