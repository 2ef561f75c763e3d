// SPDX-License-Identifier: Apache-2.0

package cniplugin

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

func attachment(conf *config, args *skel.CmdArgs) *agentv1.CNIAttachment {
	return &agentv1.CNIAttachment{Network: conf.Name, ContainerId: args.ContainerID, Interface: args.IfName}
}

// describe collects what there is to tell of a pod's interface.
func describe(conf *config, args *skel.CmdArgs) (*agentv1.AddEndpointRequest, error) {
	if err := conf.readResult(); err != nil {
		return nil, err
	}
	if conf.PrevResult == nil {
		return nil, invalid("there is no prevResult: the plugin must stand behind the one that makes the interface")
	}
	p, err := podOf(args.Args)
	if err != nil {
		return nil, err
	}
	addresses, err := addressesIn(conf.PrevResult, args.IfName)
	if err != nil {
		return nil, err
	}
	if len(addresses) == 0 {
		return nil, invalid("prevResult: the plugins before this one gave interface %s no address", args.IfName)
	}
	device, err := lookAt(args.Netns, args.IfName)
	if err != nil {
		return nil, types.NewError(CodeSandbox, "look at "+args.IfName+" in network namespace "+args.Netns+": "+err.Error(), "")
	}
	return &agentv1.AddEndpointRequest{
		Attachment: attachment(conf, args), PodNamespace: p.namespace, PodName: p.name, PodUid: p.uid, Addresses: addresses,
		DeviceIndex: device.index, DeviceName: device.name, NetnsCookie: device.cookie, Netns: args.Netns,
	}, nil
}

// addressesIn returns the addresses that a result gives to the interface, of all
// families. Plugins need not say which interface an address is of.
func addressesIn(result types.Result, ifName string) ([]string, error) {
	r, err := types100.GetResult(result)
	if err != nil {
		return nil, invalid("field prevResult: %v", err)
	}
	var list []string
	for i, ip := range r.IPs {
		if ip.Interface != nil {
			n := *ip.Interface
			if n < 0 || n >= len(r.Interfaces) {
				return nil, invalid("field prevResult.ips[%d].interface: there is no interface %d", i, n)
			}
			if other := r.Interfaces[n]; other.Sandbox != "" && other.Name != ifName {
				continue
			}
		}
		list = append(list, ip.Address.IP.String())
	}
	return list, nil
}

// device is the node's end of a pod's interface.
type device struct {
	name  string
	index uint32
	// cookie is that of the pod's network namespace, 0 if the kernel does not tell.
	cookie uint64
}

// lookAt enters the pod's network namespace to read its cookie, and which device
// the interface's other end is. Results of plugins do not tell the latter
// reliably; where it is no pair, the agent looks for the device by the addresses.
func lookAt(path, ifName string) (device, error) {
	runtime.LockOSThread() // for good: the process ends soon
	host, err := netns.Get()
	if err != nil {
		return device{}, fmt.Errorf("open own network namespace: %w", err)
	}
	defer host.Close() //nolint:errcheck // it was read from
	sandbox, err := netns.GetFromPath(path)
	if err != nil {
		return device{}, err
	}
	defer sandbox.Close() //nolint:errcheck // it was read from
	if err := netns.Set(sandbox); err != nil {
		return device{}, fmt.Errorf("enter: %w", err)
	}
	var d device
	inside, failure := netlink.LinkByName(ifName)
	if failure == nil {
		d.cookie, failure = cookie()
	}
	if err := netns.Set(host); err != nil {
		return device{}, fmt.Errorf("leave: %w", err)
	}
	if failure != nil {
		return device{}, failure
	}
	if kind := inside.Type(); kind != "veth" && kind != "netkit" {
		return d, nil
	}
	outside, err := netlink.LinkByIndex(inside.Attrs().ParentIndex)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return d, nil // the other end is in a third namespace
	case err != nil:
		return device{}, fmt.Errorf("find the node's end: %w", err)
	case outside.Type() != inside.Type() || outside.Attrs().ParentIndex != inside.Attrs().Index:
		return d, nil // a device that has the number by chance
	}
	d.name, d.index = outside.Attrs().Name, uint32(outside.Attrs().Index)
	return d, nil
}

// soNetnsCookie is SO_NETNS_COOKIE.
const soNetnsCookie = 71

// cookie returns the cookie of the thread's network namespace, 0 if the kernel
// (before 5.14) does not tell it.
func cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was sent
	value, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, soNetnsCookie)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read cookie: %w", err)
	}
	return value, nil
}
