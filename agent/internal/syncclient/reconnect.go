// SPDX-License-Identifier: Apache-2.0

package syncclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/millrace-project/millrace/proto/errorinfo"
)

// Backoff bounds the waits between attempts.
type Backoff struct{ First, Last time.Duration }

// DefaultBackoff is what agents use: quick at first, because most losses are a
// calculator's restart, and slow enough in the end for thousands of nodes.
var DefaultBackoff = Backoff{First: 500 * time.Millisecond, Last: 15 * time.Second}

// Run keeps a stream open until ctx ends. It goes through all calculators in
// an order made by chance, so that agents spread over them; the one that was
// lost last comes last, one that asked to wait is left out until then. Between
// rounds, and after a stream that was lost, it waits a time made by chance whose
// bound doubles: agents that lose one calculator together must not come back
// together.
func (c *Client) Run(ctx context.Context) {
	wait := c.options.Backoff.First
	avoid := ""
	notBefore := map[string]time.Time{}
	for ctx.Err() == nil {
		r := c.round(ctx, avoid, notBefore)
		avoid = r.avoid
		if r.moved {
			wait = c.options.Backoff.First
			continue // asked to leave, one agent at a time: no reason to wait
		}
		if r.lived {
			wait = c.options.Backoff.First
		}
		pause := rand.N(wait)
		if !r.lived {
			wait = min(2*wait, c.options.Backoff.Last)
		}
		select {
		case <-ctx.Done():
		case <-c.options.Discovery.Changed():
			wait = c.options.Backoff.First
			sleep(ctx, rand.N(wait)) // other agents were told the same
		case <-time.After(pause):
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// roundEnd is how a round over all targets ended.
type roundEnd struct {
	// moved: a calculator asked the agent to leave. lived: there was a stream
	// for a while.
	moved, lived bool
	// avoid is the address that should come last in the next round.
	avoid string
}

// round tries the targets until there was a proper stream at one of them.
// notBefore has the addresses that asked to wait.
func (c *Client) round(ctx context.Context, avoid string, notBefore map[string]time.Time) (end roundEnd) {
	addresses := c.order(avoid)
	if len(addresses) == 0 {
		c.ended("", errNowhere)
	}
	for address := range notBefore {
		if !slices.Contains(addresses, address) {
			delete(notBefore, address)
		}
	}
	for i, address := range addresses {
		if i > 0 {
			select {
			case <-c.options.Discovery.Changed():
				return roundEnd{moved: true, avoid: avoid} // the rest may be out of date
			default:
			}
		}
		started := time.Now()
		if started.Before(notBefore[address]) {
			continue
		}
		target, err := c.options.Discovery.Target(address)
		if err == nil {
			err = c.stream(ctx, target)
		}
		c.ended(address, err)
		if ctx.Err() != nil {
			return end
		}
		var drain *drained
		if errors.As(err, &drain) {
			end = roundEnd{moved: true}
			if !drain.anew {
				end.avoid = address
			}
			return end
		}
		// A stream that lived a while was a good one: begin anew, and not with
		// the longest wait.
		if time.Since(started) > c.options.Backoff.Last {
			return roundEnd{lived: true, avoid: address}
		}
		if delay := retryDelay(err); delay > 0 {
			// Others were told the same.
			notBefore[address] = time.Now().Add(delay + rand.N(delay))
		}
	}
	return end
}

// errNowhere is why there is no stream before anybody has told where
// calculators are.
var errNowhere = refuse("NO_ADDRESS", "no address of a calculator is known")

// order returns the addresses in random order, the one to avoid last.
func (c *Client) order(avoid string) []string {
	addresses := slices.Clone(c.options.Discovery.Addresses())
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	if i := slices.Index(addresses, avoid); i >= 0 {
		addresses = append(slices.Delete(addresses, i, i+1), avoid)
	}
	return addresses
}

// longestDelay bounds what a calculator can make an agent wait.
const longestDelay = 5 * time.Minute

// retryDelay is how long a calculator asked to wait; 0 if it did not ask.
func retryDelay(err error) time.Duration {
	return min(max(errorinfo.RetryDelay(err), 0), longestDelay)
}
