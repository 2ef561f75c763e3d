// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/bpf/layout"
	"github.com/millrace-project/millrace/test/testbed"
)

const (
	// churned is how many services change in turn.
	churned = 50
	// changeInterval makes 50 changes a second.
	changeInterval = 20 * time.Millisecond
	// lookInterval is how often a node's map is looked at for a change; it
	// is what the times measured are off by at most.
	lookInterval = time.Millisecond
	// firstChurnPort is the port that a service gets with the first change.
	firstChurnPort = 1000
)

// measureChanges measures the time from writing a changed Service to its new
// frontend standing in the kernel of the last node.
func measureChanges(ctx context.Context, r *run) error {
	for _, services := range []int{smallServices, r.Services} {
		r.progress("%d changes at %d services", r.Changes, services)
		latencies, err := changeLatencies(ctx, r, services)
		if err != nil {
			return err
		}
		name := fmt.Sprintf("change to programmed on all nodes, 50 changes/s, %d services", services)
		r.results.add(name+", p50", quantile(latencies, 0.50), "ms")
		r.results.add(name+", p99", quantile(latencies, 0.99), "ms")
	}
	return nil
}

// changeLatencies returns the time that each change took, in milliseconds.
func changeLatencies(ctx context.Context, r *run, services int) (latencies []float64, err error) {
	stack, err := startStack(ctx, r, "changes", services)
	if stack != nil {
		defer func() { err = errors.Join(err, stack.Close()) }()
	}
	if err != nil {
		return nil, err
	}
	var watchers []*frontendWatcher
	for _, node := range stack.Nodes {
		w, err := watchFrontends(node, r.Family)
		if err != nil {
			return nil, err
		}
		defer w.close()
		watchers = append(watchers, w)
	}
	// The first change of a service creates it; only those that follow count.
	total := churned + r.Changes
	ticker := time.NewTicker(changeInterval)
	defer ticker.Stop()
	begins := make([]time.Time, total)
	for n := range total {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
		churn := service(fmt.Sprintf("churn-%d", n%churned), churnNumber+n%churned, 0, fillerEndpoints(stack.Cluster, n)...)
		churn.Ports[0].Port = uint16(firstChurnPort + n)
		front := netip.AddrPortFrom(testbed.ServiceIP(r.Family, churnNumber+n%churned), churn.Ports[0].Port)
		begins[n] = time.Now()
		if err := stack.ApplyService(churn); err != nil {
			return nil, err
		}
		for _, w := range watchers {
			w.expect(n, front)
		}
	}
	for n := churned; n < total; n++ {
		var last time.Time
		for _, w := range watchers {
			at, err := w.seen(ctx, n)
			if err != nil {
				return nil, err
			}
			if at.After(last) {
				last = at
			}
		}
		latencies = append(latencies, float64(last.Sub(begins[n]).Microseconds())/1e3)
	}
	return latencies, nil
}

// frontendWatcher looks for frontends in the map of one node.
type frontendWatcher struct {
	frontends *ebpf.Map
	node      string
	stop      chan struct{}
	done      sync.WaitGroup

	mu      sync.Mutex
	pending map[int]netip.AddrPort
	at      map[int]time.Time
}

// watchFrontends starts looking.
func watchFrontends(node *testbed.Node, family int) (*frontendWatcher, error) {
	path, err := findPin(node.BPFDir, fmt.Sprintf("frontends_v%d", family))
	if err != nil {
		return nil, err
	}
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("opening the frontends of %s: %w", node.Name, err)
	}
	w := &frontendWatcher{
		frontends: m, node: node.Name, stop: make(chan struct{}),
		pending: map[int]netip.AddrPort{}, at: map[int]time.Time{},
	}
	w.done.Go(w.look)
	return w, nil
}

// findPin returns the path of a pinned object below a directory.
func findPin(dir, name string) (string, error) {
	var found string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == name {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && found == "" {
		err = fmt.Errorf("%s: %w", name, os.ErrNotExist)
	}
	if err != nil {
		return "", fmt.Errorf("finding a pin below %s: %w", dir, err)
	}
	return found, nil
}

func (w *frontendWatcher) close() {
	close(w.stop)
	w.done.Wait()
	w.frontends.Close()
}

// expect makes the watcher look for a frontend.
func (w *frontendWatcher) expect(n int, front netip.AddrPort) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pending[n] = front
}

// seen waits until the frontend of change n has been seen and tells when.
func (w *frontendWatcher) seen(ctx context.Context, n int) (at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err = testbed.Eventually(ctx, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		var found bool
		if at, found = w.at[n]; !found {
			return fmt.Errorf("%s has not programmed change %d", w.node, n)
		}
		return nil
	})
	return at, err
}

func (w *frontendWatcher) look() {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		w.mu.Lock()
		for n, front := range w.pending {
			if hasFrontend(w.frontends, front) {
				w.at[n] = time.Now()
				delete(w.pending, n)
			}
		}
		w.mu.Unlock()
	}
}

// protocolTCP is TCP's number.
const protocolTCP = 6

// hasFrontend tells whether the map has the frontend, with backends.
func hasFrontend(m *ebpf.Map, front netip.AddrPort) bool {
	var value layout.Frontend
	if key, ok := layout.NewFrontendKey[layout.V4](front, protocolTCP); ok {
		return m.Lookup(&key, &value) == nil && value.BackendCount > 0
	}
	key, _ := layout.NewFrontendKey[layout.V6](front, protocolTCP)
	return m.Lookup(&key, &value) == nil && value.BackendCount > 0
}
