// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/reliability/traffic"
	"github.com/millrace-project/millrace/test/testbed"
)

// pairs is how many pairs of devices are made at a time.
const pairs = 12

// devices makes pairs of devices on a node and removes them. Half of them have
// an address, which makes uplinks of them.
func devices(_ context.Context, r *rig, random *rand.Rand) error {
	node := r.Nodes[random.IntN(len(r.Nodes))]
	for range 3 {
		prefix := fmt.Sprintf("churn%d-", random.IntN(100000))
		if err := node.Do(func() error { return makeDevices(prefix) }); err != nil {
			return err
		}
		pause(random, 400*time.Millisecond)
		if err := node.Do(func() error { return removeDevices(prefix) }); err != nil {
			return err
		}
	}
	return nil
}

func makeDevices(prefix string) error {
	for i := range pairs {
		name := prefix + strconv.Itoa(i)
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("make device: %w", err)
		}
		if i%2 == 0 {
			if err := addAddress(name, net.IPv4(198, 51, 100, byte(i+1)), 32); err != nil {
				return err
			}
		}
		for _, end := range []string{name, name + "p"} {
			device, err := netlink.LinkByName(end)
			if err != nil {
				return fmt.Errorf("find device %s: %w", end, err)
			}
			if err := netlink.LinkSetUp(device); err != nil {
				return fmt.Errorf("set %s up: %w", end, err)
			}
		}
	}
	return nil
}

func removeDevices(prefix string) error {
	for i := range pairs {
		device, err := netlink.LinkByName(prefix + strconv.Itoa(i))
		if err != nil {
			return fmt.Errorf("find device: %w", err)
		}
		if err := netlink.LinkDel(device); err != nil {
			return fmt.Errorf("remove device: %w", err)
		}
	}
	return nil
}

// uplinkAddress gives a node's uplink a second address of each family and
// takes it away again.
func uplinkAddress(_ context.Context, r *rig, random *rand.Rand) error {
	node := r.Nodes[random.IntN(len(r.Nodes))]
	number := byte(100 + random.IntN(50))
	last := node.IPv6.As16()
	last[14], last[15] = 1, number
	addresses := []struct {
		ip   net.IP
		bits int
	}{{net.IPv4(172, 30, 0, number), 24}, {last[:], 64}}
	for _, address := range addresses {
		if err := node.Do(func() error { return addAddress("eth0", address.ip, address.bits) }); err != nil {
			return err
		}
	}
	pause(random, 500*time.Millisecond)
	for _, address := range addresses {
		err := node.Do(func() error {
			device, err := netlink.LinkByName("eth0")
			if err != nil {
				return fmt.Errorf("find uplink: %w", err)
			}
			if err := netlink.AddrDel(device, addressOf(address.ip, address.bits)); err != nil {
				return fmt.Errorf("remove address %s: %w", address.ip, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func addressOf(ip net.IP, bits int) *netlink.Addr {
	size := 128
	if v4 := ip.To4(); v4 != nil {
		ip, size = v4, 32
	}
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, size)}, Flags: unix.IFA_F_NODAD,
		// Deprecated: the node's clients must not choose it for connections that
		// would end with it.
		PreferedLft: 0, ValidLft: 3600,
	}
}

func addAddress(device string, ip net.IP, bits int) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find device %s: %w", device, err)
	}
	if err := netlink.AddrAdd(link, addressOf(ip, bits)); err != nil {
		return fmt.Errorf("add address %s to %s: %w", ip, device, err)
	}
	return nil
}

// grace is how long a pod that has left its service goes on serving.
const grace = time.Second

// pods makes pods that serve and removes them, each in the order that
// Kubernetes has.
func pods(ctx context.Context, r *rig, random *rand.Rand) error {
	r.podsMu.Lock()
	defer r.podsMu.Unlock()
	before := r.traffic.Service(traffic.Visits).Endpoints
	var made []*testbed.Pod
	for _, node := range r.Nodes {
		pod, err := r.AddPod(node)
		if err != nil {
			return err
		}
		made = append(made, pod)
		if err := r.traffic.Serve(traffic.Visits, pod); err != nil {
			return err
		}
		if err := r.write(ctx, pod.Object()); err != nil {
			return err
		}
	}
	// The new ones only, so that they get all the requests.
	var endpoints []testbed.Endpoint
	for _, pod := range made {
		endpoints = append(endpoints, pod.Endpoint())
	}
	if err := r.traffic.Scale(ctx, traffic.Visits, endpoints...); err != nil {
		return err
	}
	pause(random, 500*time.Millisecond)
	if err := r.traffic.Scale(ctx, traffic.Visits, before...); err != nil {
		return err
	}
	time.Sleep(grace)
	for _, pod := range slices.Backward(made) {
		if err := r.remove(ctx, pod.Object()); err != nil {
			return err
		}
		if err := r.RemovePod(pod); err != nil {
			return err
		}
	}
	return nil
}
