// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// TestKeepWatching loses the first subscription and the second: both are told
// and made anew. Without a first one there is nothing to keep.
func TestKeepWatching(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lost := errors.New("lost")
	var calls, wakes int
	var told []error
	first := make(chan error, 1)
	keepWatching(ctx, first, func(ready chan<- error) error {
		if calls++; calls == 3 {
			cancel()
			return nil
		}
		if ready != nil {
			ready <- nil
		}
		return lost
	}, func() { wakes++ }, func(err error) { told = append(told, err) })
	if calls != 3 || len(told) != 2 || wakes < 2 || <-first != nil {
		t.Fatalf("%d calls, %d wakes, told %v", calls, wakes, told)
	}
	calls = 0
	keepWatching(context.Background(), first, func(chan<- error) error {
		calls++
		return fmt.Errorf("%w: no", errSubscribe)
	}, func() {}, func(error) {})
	if calls != 1 {
		t.Fatalf("%d calls without a subscription", calls)
	}
}
