// SPDX-License-Identifier: Apache-2.0

package interfaces

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Events tells of changes on the node.
type Events struct {
	// Changed has an element after something changed that Classify looks at.
	Changed <-chan struct{}
	// Gone has the index of each device that was deleted.
	Gone <-chan uint32
}

const (
	// settle is how long to wait for more: one new pod is a dozen events.
	settle = 5 * time.Millisecond
	// resubscribe is how long to wait after losing a subscription.
	resubscribe = 100 * time.Millisecond
)

// Watch reports changes of devices, addresses, routes and neighbours in the
// caller's network namespace until ctx ends. failed is told of lost
// subscriptions; each is made anew, and counts as a change.
func Watch(ctx context.Context, failed func(error)) (Events, error) {
	changed := make(chan struct{}, 1)
	gone := make(chan uint32, 64)
	poke := make(chan struct{}, 1)
	wake := func() {
		select {
		case poke <- struct{}{}:
		default:
		}
	}
	first := make(chan error, 1)
	go keepWatching(ctx, first, func(ready chan<- error) error { return watchOnce(ctx, ready, wake, gone) }, wake, failed)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-poke:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	if err := <-first; err != nil {
		return Events{}, err
	}
	return Events{Changed: changed, Gone: gone}, nil
}

// errSubscribe says that there is no subscription to lose.
var errSubscribe = errors.New("subscribe to netlink")

// keepWatching calls watch again and again until ctx ends. The first call tells
// first how subscribing went; if that failed, nobody waits for more.
func keepWatching(ctx context.Context, first chan<- error, watch func(ready chan<- error) error, wake func(), failed func(error)) {
	for ready := first; ctx.Err() == nil; ready = nil {
		err := watch(ready)
		if ready != nil && errors.Is(err, errSubscribe) {
			return
		}
		if err != nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(resubscribe):
		}
		wake()
	}
}

// watchOnce subscribes, tells ready, and passes events on until a subscription
// is lost.
func watchOnce(ctx context.Context, ready chan<- error, wake func(), gone chan<- uint32) error {
	done := make(chan struct{})
	defer close(done)
	lost := make(chan error, 4)
	onError := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	addresses := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	neighbours := make(chan netlink.NeighUpdate, 64)
	const buffer = 1 << 20
	err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{
		ErrorCallback: onError, ReceiveBufferSize: buffer,
	})
	if err == nil {
		err = netlink.AddrSubscribeWithOptions(addresses, done, netlink.AddrSubscribeOptions{
			ErrorCallback: onError, ReceiveBufferSize: buffer,
		})
	}
	if err == nil {
		err = netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{
			ErrorCallback: onError, ReceiveBufferSize: buffer,
		})
	}
	if err == nil {
		err = netlink.NeighSubscribeWithOptions(neighbours, done, netlink.NeighSubscribeOptions{
			ErrorCallback: onError, ReceiveBufferSize: buffer,
		})
	}
	if err != nil {
		err = fmt.Errorf("%w: %w", errSubscribe, err)
	}
	if ready != nil {
		ready <- err
	}
	// The subscriptions' goroutines end, and close their channels, once they are
	// rid of what they hold.
	defer func() {
		go drain(links)
		go drain(addresses)
		go drain(routes)
		go drain(neighbours)
	}()
	if err != nil {
		return err
	}
	bridges := map[int]bool{}
	list, err := retryDump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, l := range list {
		bridges[l.Attrs().Index] = l.Type() == "bridge"
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-lost:
			return fmt.Errorf("netlink subscription: %w", err)
		case u, ok := <-links:
			if !ok {
				return fmt.Errorf("netlink subscription to devices ended")
			}
			if u.Header.Type == unix.RTM_NEWLINK && u.Link.Type() == "bridge" {
				bridges[int(u.Index)] = true
			} else {
				delete(bridges, int(u.Index))
			}
			if u.Header.Type == unix.RTM_DELLINK && u.IfInfomsg.Family != unix.AF_BRIDGE {
				select {
				case gone <- uint32(u.Index):
				case <-ctx.Done():
					return nil
				}
			}
			wake()
		case _, ok := <-addresses:
			if !ok {
				return fmt.Errorf("netlink subscription to addresses ended")
			}
			wake()
		case _, ok := <-routes:
			if !ok {
				return fmt.Errorf("netlink subscription to routes ended")
			}
			wake()
		case u, ok := <-neighbours:
			if !ok {
				return fmt.Errorf("netlink subscription to neighbours ended")
			}
			// Where a bridge has an address is what its neighbours and its
			// forwarding entries tell; those of other devices come and go with
			// traffic and decide nothing.
			if u.Family == unix.AF_BRIDGE || bridges[u.LinkIndex] && u.State&netlink.NUD_REACHABLE != 0 {
				wake()
			}
		}
	}
}

func drain[T any](updates <-chan T) {
	for range updates { //nolint:revive // to be rid of them is the purpose
	}
}
