// SPDX-License-Identifier: Apache-2.0

package publish

import (
	"sync"
	"time"
)

// joins lets agents that hold nothing and come at about the same time begin
// with the same revision, although newer ones are published meanwhile: the
// whole state is then encoded once for all of them, and what is newer follows
// as it does for everybody. Encoding 10,000 services takes tens of
// milliseconds, which a thousand agents during a rollout would each cost anew.
type joins struct {
	mu       sync.Mutex
	snapshot *snapshot
}

// joinsTogether is how old a revision may be that an agent begins with.
const joinsTogether = time.Second

// choose returns what a node begins with.
func (j *joins) choose(node string, current *snapshot) (view, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.snapshot != nil {
		if v, ok := j.snapshot.view(node); ok {
			return v, true
		}
		return current.view(node) // a new node
	}
	j.snapshot = current
	time.AfterFunc(joinsTogether, j.forget)
	return current.view(node)
}

func (j *joins) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.snapshot = nil
}
