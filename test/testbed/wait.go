// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Eventually calls condition until it returns nil or the context ends, then
// with the condition's last error. Between calls it rests 1 ms at first and
// 50 ms at most.
func Eventually(ctx context.Context, condition func() error) error {
	rest := time.Millisecond
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return errors.Join(err, cause)
			}
			return fmt.Errorf("not within the time allowed: %w", err)
		case <-time.After(rest):
		}
		rest = min(rest*3/2, 50*time.Millisecond)
	}
}

// Within is Eventually with a time limit.
func Within(limit time.Duration, condition func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return Eventually(ctx, condition)
}
