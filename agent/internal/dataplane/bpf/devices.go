// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/affinity"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/services"
	"github.com/millrace-project/millrace/agent/internal/dataplane/bpf/tables"
	"github.com/millrace-project/millrace/agent/internal/held"
	"github.com/millrace-project/millrace/agent/internal/interfaces"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

// Kernel holds the programs.
type Kernel interface {
	// Quiesce waits until every run of a program that had begun has ended.
	Quiesce() error
	// AttachCgroup attaches the programs of sockets, or keeps them if they are
	// attached.
	AttachCgroup() error
	// MissingAttachments describes programs of sockets that are not attached.
	MissingAttachments() ([]*agentv1.DiffDesiredResponse, error)
	// AttachDevice attaches the programs of a device of that kind, or keeps them
	// if they are attached.
	AttachDevice(index uint32, name string, kind layout.DeviceKind) error
	// DetachDevice detaches the programs of a device, if there are any.
	DetachDevice(index uint32) error
	// Forget drops the belief that a device has programs: it was deleted, and
	// its index may come back as another's.
	Forget(index uint32)
	// Reset drops every such belief, so that AttachDevice looks again.
	Reset()
	// AttachedDevices returns the devices that have programs, pinned ones of an
	// earlier agent included, and whether they have all.
	AttachedDevices() (map[uint32]bool, error)
	// Attachments describes everything attached.
	Attachments() []*agentv1.Attachment
	// Features describes what the kernel can do.
	Features() []*agentv1.Feature
	// Programs describes the programs as the kernel has loaded them.
	Programs() []*agentv1.Program
	// Maps describes the maps.
	Maps() ([]*agentv1.MapState, error)
	// Capacities returns how many entries fit into each map, by name.
	Capacities() map[string]uint64
	// SNATPorts returns which of the source ports first to last may be used now.
	SNATPorts(first, last uint16) (uint16, uint16)
	// TableSizes returns how many entries fit into each table, by name.
	TableSizes() map[string]uint32
	// PrepareGrowth makes larger tables ready to take the place of those in use.
	PrepareGrowth(sizes map[string]uint32) (Growth, error)
	// PinTables pins what a growth could not.
	PinTables() error
	// Affinity is who keeps which backend.
	Affinity() *affinity.Table
	// DumpMap calls visit with each entry of a map; dataplane.ErrNoMap if there
	// is none of that name.
	DumpMap(name string, visit func(key, value string) error) error
}

// Growth is a replacement of tables by larger ones, which ends by either call.
type Growth interface {
	// Exchange copies the tables and makes the programs use the larger ones.
	// Nobody may write to a table meanwhile.
	Exchange() error
	// Abort gives the replacement up.
	Abort()
}

// applyTopology looks at the node and makes settings, routes and attachments
// follow. It adds to the delta the services that look different now.
func (p *Plane) applyTopology(d *delta) {
	p.again = false
	p.problems = nil
	p.mergeEndpoints()
	p.lookAtDevices()
	p.applyConfig()
	p.applyAddresses(d)
	p.applyRoutes()
	p.applyAttachments()
}

func (p *Plane) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

func (p *Plane) lookAtDevices() {
	var prefixes []netip.Prefix
	if self := p.cluster.nodes[p.options.Node]; self != nil {
		prefixes = self.podCIDRs
	}
	state, err := p.classifier.Classify(p.findEndpoints(), prefixes)
	if err != nil {
		p.log.Error("look at the node's devices", zap.Error(err))
		p.problem("the node's devices could not be looked at: %v", err)
		p.again = true
		return
	}
	p.devices = state
}

// desiredConfig returns the settings that programs are to read.
func (p *Plane) desiredConfig(current layout.Config) layout.Config {
	self := p.cluster.nodes[p.options.Node]
	first, last := p.kernel.SNATPorts(p.options.SNATPorts.First, p.options.SNATPorts.Last)
	config := layout.Config{
		SnatPortFirst:         first,
		SnatPortLast:          last,
		HostNetnsCookie:       p.options.HostNetnsCookie,
		Flags:                 layout.ConfigEnabled,
		TCPSynTimeout:         tcpSynTimeout,
		TCPEstablishedTimeout: tcpEstablishedTimeout,
		TCPCloseTimeout:       tcpCloseTimeout,
		UDPTimeout:            udpTimeout,
		UDPStreamTimeout:      udpStreamTimeout,
	}
	if p.fastPath {
		config.Flags |= layout.ConfigFastPath
	}
	if addr, ok := self.speaksFrom(tables.V4); ok {
		config.NodeAddrV4 = addr.As4()
	}
	if addr, ok := self.speaksFrom(tables.V6); ok {
		config.NodeAddrV6 = addr.As16()
	}
	if self == nil && !p.inSync {
		// Not told yet; what an earlier agent knew stays.
		config.NodeAddrV4, config.NodeAddrV6 = current.NodeAddrV4, current.NodeAddrV6
	}
	return config
}

// fastPathAllowed tells whether flows may pass the host's stack by.
func (p *Plane) fastPathAllowed() bool {
	if !p.options.FastPath || p.options.AllowFastPath == nil {
		return p.options.FastPath
	}
	if err := p.options.AllowFastPath(); err != nil {
		p.problem("flows within the cluster go through the host's stack: %v", err)
		return false
	}
	return true
}

// applyConfig writes the settings that programs read.
func (p *Plane) applyConfig() {
	current, err := p.tables.ReadConfig()
	if err != nil {
		p.log.Error("read config", zap.Error(err))
		p.problem("the map config could not be read: %v", err)
		p.again = true
		return
	}
	p.fastPath = p.fastPathAllowed()
	config := p.desiredConfig(current)
	if current == config {
		return
	}
	if err := p.tables.WriteConfig(config); err != nil {
		p.log.Error("write config", zap.Error(err))
		p.problem("the map config could not be written: %v", err)
		p.again = true
	}
}

// applyAddresses finds the services that look different because addresses of
// nodes, or of this node, changed.
func (p *Plane) applyAddresses(d *delta) {
	known := p.cluster.nodeAddresses()
	changed := map[tables.Address]struct{}{}
	for a, f := range known {
		if old, ok := p.env.NodeAddresses[a]; !ok || old != f {
			changed[a] = struct{}{}
		}
	}
	for a, f := range p.env.NodeAddresses {
		if now, ok := known[a]; !ok || now != f {
			changed[a] = struct{}{}
		}
	}
	p.env.NodeAddresses = known
	if len(changed) > 0 {
		for _, name := range p.services.UsersOf(changed) {
			d.services[name] = struct{}{}
		}
	}
	at := p.nodePortAddresses()
	if !slices.Equal(at, p.env.NodePortAddresses) {
		p.env.NodePortAddresses = at
		d.allServices = true
	}
}

// nodePortAddresses returns where this node serves node ports: at its addresses
// of the stream, at the global addresses of its uplinks, and on loopback for the
// host itself.
func (p *Plane) nodePortAddresses() []services.NodePortAddress {
	var all []netip.Addr
	if self := p.cluster.nodes[p.options.Node]; self != nil {
		all = append(all, self.addresses...)
	}
	all = append(all, p.devices.UplinkAddresses...)
	slices.SortFunc(all, netip.Addr.Compare)
	var result []services.NodePortAddress
	for _, addr := range slices.Compact(all) {
		a, f := tables.FromAddr(addr)
		result = append(result, services.NodePortAddress{Addr: a, Family: f})
	}
	for _, addr := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		a, f := tables.FromAddr(addr)
		result = append(result, services.NodePortAddress{Addr: a, Family: f, HostOnly: true})
	}
	return result
}

func (p *Plane) applyRoutes() {
	failed := p.routes.Sync(p.cluster.routes(p.devices.Endpoints), func(key tables.RouteKey) bool {
		_, released := p.released.routes[key]
		return p.inSync || released
	})
	maps.DeleteFunc(p.released.routes, func(key tables.RouteKey, _ struct{}) bool { return failed[key] == nil })
	if len(failed) == 0 {
		return
	}
	p.again = true
	for key, err := range failed {
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
			p.full["routes_"+key.Family.String()] = struct{}{}
		}
	}
	for _, err := range failed {
		// One tells the cause; there may be thousands.
		p.problem("%d routes could not be programmed: %v", len(failed), err)
		break
	}
}

// applyAttachments makes every pod and uplink have its programs and no other
// device any.
func (p *Plane) applyAttachments() {
	wanted := map[uint32]interfaces.Device{}
	for _, device := range p.devices.Devices {
		if device.Role != interfaces.RoleIgnored {
			wanted[device.Index] = device
		}
	}
	attached := map[uint32]string{}
	for _, index := range slices.Sorted(maps.Keys(wanted)) {
		device := wanted[index]
		kind := layout.DeviceUplink
		if device.Role == interfaces.RolePod {
			kind = layout.DevicePod
		}
		attached[index] = ""
		if err := p.kernel.AttachDevice(index, device.Name, kind); err != nil {
			p.again = true
			attached[index] = err.Error()
			if device.Role == interfaces.RoleUplink {
				p.problem("uplink %s has no programs: %v", device.Name, err)
			}
			if p.attached[index] != err.Error() {
				p.log.Error("attach programs", zap.String("device", device.Name), zap.Error(err))
			}
		}
	}
	p.attached = attached
	p.detachOthers(wanted)
	p.endpointErrors()
}

// detachOthers detaches programs from devices that should have none. A pod's
// device found by an earlier agent keeps its programs until the node is in sync
// and the pod is known to be gone.
func (p *Plane) detachOthers(wanted map[uint32]interfaces.Device) {
	have, err := p.kernel.AttachedDevices()
	if err != nil {
		p.log.Error("list devices with programs", zap.Error(err))
		return
	}
	exists := map[uint32]bool{}
	for _, device := range p.devices.Devices {
		exists[device.Index] = true
	}
	for _, index := range slices.Sorted(maps.Keys(have)) {
		_, released := p.released.devices[index]
		if _, ok := wanted[index]; ok || exists[index] && !p.inSync && !released {
			continue
		}
		if err := p.kernel.DetachDevice(index); err != nil {
			p.log.Error("detach programs", zap.Uint32("ifindex", index), zap.Error(err))
			p.problem("programs of device %d could not be detached: %v", index, err)
			p.again = true
			continue
		}
		delete(p.released.devices, index)
	}
	maps.DeleteFunc(p.released.devices, func(index uint32, _ struct{}) bool {
		_, attached := have[index]
		_, ok := wanted[index]
		return ok || !attached
	})
}

// checkAttachments notes which attachments are gone that were made: somebody
// else removed them, and repairing brings them back.
func (p *Plane) checkAttachments() {
	before := p.lost
	p.lost = nil
	sockets, err := p.kernel.MissingAttachments()
	if err != nil {
		p.lost = append(p.lost, fmt.Sprintf("attachments could not be listed: %v", err))
		return
	}
	have, err := p.kernel.AttachedDevices()
	if err != nil {
		p.lost = append(p.lost, fmt.Sprintf("attachments could not be listed: %v", err))
		return
	}
	var lost []string
	for _, s := range sockets {
		lost = append(lost, s.GetKey()+" of "+s.GetObject())
	}
	for _, device := range p.devices.Devices {
		failure, attached := p.attached[device.Index]
		if !attached || failure != "" || have[device.Index] {
			continue
		}
		// A device that was deleted a moment ago took its programs along.
		if _, err := net.InterfaceByIndex(int(device.Index)); err == nil {
			lost = append(lost, "device "+device.Name)
		}
	}
	if len(lost) == 0 {
		return
	}
	text := strings.Join(lost[:min(len(lost), maxLost)], ", ")
	if more := len(lost) - maxLost; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	p.lost = append(p.lost, fmt.Sprintf("%d attachments that this agent made are gone: %s; repair makes them anew", len(lost), text))
	if !slices.Equal(before, p.lost) {
		p.log.Error("attachments are gone", zap.Strings("attachments", lost))
	}
}

// maxLost is how many attachments that are gone are named.
const maxLost = 3

func (p *Plane) endpointErrors() {
	for key := range p.cluster.merged {
		name := held.Name{Type: dataplanev1.ResourceType_RESOURCE_TYPE_ENDPOINT, Key: key}
		if why, missing := p.devices.Missing[key]; missing {
			p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonDeviceNotFound, "addresses",
				fmt.Sprintf("the device of pod %s was not found: %s; services may not work from it", key, why)))
			continue
		}
		if failure := p.attached[p.devices.Endpoints[key]]; failure != "" {
			name := name
			p.errors.Set(name, dataplane.NewError(name, dataplane.ReasonAttach, "",
				fmt.Sprintf("the device of pod %s took no programs: %s", key, failure)))
			continue
		}
		p.errors.Set(name)
	}
}

// DevicesGone implements dataplane.Dataplane.
func (p *Plane) DevicesGone(indexes ...uint32) {
	for _, index := range indexes {
		p.kernel.Forget(index)
	}
	n, err := p.conntrack.ForgetDevices(indexes...)
	if err != nil {
		p.log.Error("forget flows of deleted devices", zap.Uint32s("ifindexes", indexes), zap.Error(err))
		return
	}
	if n > 0 {
		p.log.Debug("forgot flows of deleted devices", zap.Uint32s("ifindexes", indexes), zap.Int("flows", n))
	}
}

// State implements dataplane.Dataplane.
func (p *Plane) State() *agentv1.DataplaneState {
	state := &agentv1.DataplaneState{
		Mode:        dataplanev1.DataplaneMode_DATAPLANE_MODE_BPF,
		Attachments: p.kernel.Attachments(),
		Features:    p.kernel.Features(),
		Kernel:      mbpf.KernelRelease(),
		Programs:    p.kernel.Programs(),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	state.Affinities = uint64(p.affinities.V4 + p.affinities.V6)
	for _, d := range p.devices.Devices {
		device := &agentv1.Device{
			Name: d.Name, Index: d.Index, Role: string(d.Role), Reason: d.Reason, Endpoint: d.Endpoint,
		}
		if failure := p.attached[d.Index]; failure != "" {
			device.Reason += "; its programs could not be attached: " + failure
		}
		state.Devices = append(state.Devices, device)
	}
	return state
}
