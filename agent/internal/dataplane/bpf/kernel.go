// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/millrace-project/millrace/agent/internal/affinity"
	"github.com/millrace-project/millrace/agent/internal/conntrack"
	"github.com/millrace-project/millrace/agent/internal/dataplane"
	mbpf "github.com/millrace-project/millrace/bpf"
	"github.com/millrace-project/millrace/bpf/layout"
	agentv1 "github.com/millrace-project/millrace/proto/millrace/agent/v1"
)

// device is what was attached to a device.
type device struct {
	name        string
	kind        layout.DeviceKind
	attachments []mbpf.Attachment
}

// System is the real kernel: the programs and maps of package bpf.
type System struct {
	dataplane *mbpf.Dataplane
	pinPath   string
	cgroup    string
	features  func() []*agentv1.Feature
	conntrack *conntrack.Table

	mu      sync.Mutex
	sockets []mbpf.Attachment
	// unattached is why not all of them are attached: others may run programs of
	// an earlier life, which read tables and maps that they were loaded with.
	unattached error
	devices    map[uint32]device
}

var _ Kernel = (*System)(nil)

// NewSystem returns the kernel behind an open dataplane.
func NewSystem(d *mbpf.Dataplane, pinPath, cgroup string) *System {
	s := &System{
		dataplane: d, pinPath: pinPath, cgroup: cgroup, devices: map[uint32]device{},
		// Some 30 ms, which a start can do without.
		features: sync.OnceValue(func() []*agentv1.Feature { return Features(d.Features()) }),
	}
	s.conntrack = conntrack.New(s.conntrackMaps)
	return s
}

// Features describes probed features.
func Features(probed []mbpf.Feature) []*agentv1.Feature {
	var list []*agentv1.Feature
	for _, f := range probed {
		feature := &agentv1.Feature{
			Name: f.Name, Available: f.Present(), Used: f.Used(), Required: f.Required, Consequence: f.Consequence(),
		}
		if f.Err != nil {
			feature.Error = f.Err.Error()
		}
		list = append(list, feature)
	}
	return list
}

// Programs describes loaded programs.
func Programs(infos []mbpf.ProgramInfo) []*agentv1.Program {
	var list []*agentv1.Program
	for _, i := range infos {
		list = append(list, &agentv1.Program{
			Name: i.Name, Instructions: uint32(i.Instructions), VerifiedInstructions: i.Verified,
		})
	}
	return list
}

// Conntrack returns the flow tables.
func (s *System) Conntrack() *conntrack.Table { return s.conntrack }

// conntrackMaps returns a family's flow tables as they are now.
func (s *System) conntrackMaps(family int) conntrack.Maps {
	f := s.dataplane.Family(family)
	var maps conntrack.Maps
	maps.Established, maps.EstablishedDraining = f.Established.Maps()
	maps.Embryonic, maps.EmbryonicDraining = f.Embryonic.Maps()
	return maps
}

// Affinity implements Kernel.
func (s *System) Affinity() *affinity.Table {
	return &affinity.Table{V4: s.dataplane.V4.Affinity, V6: s.dataplane.V6.Affinity}
}

// Quiesce implements Kernel.
func (s *System) Quiesce() error { return s.dataplane.Quiesce() }

// AttachCgroup implements Kernel.
func (s *System) AttachCgroup() error {
	attachments, err := s.dataplane.AttachCgroup(s.cgroup)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || len(attachments) > len(s.sockets) {
		s.sockets = attachments // else what should be attached stays known
	}
	s.unattached = err
	return err
}

// AttachDevice implements Kernel.
func (s *System) AttachDevice(index uint32, name string, kind layout.DeviceKind) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have, ok := s.devices[index]; ok && have.kind == kind && have.name == name {
		return nil
	}
	role := mbpf.Uplink
	if kind == layout.DevicePod {
		role = mbpf.Pod
	}
	attachments, err := s.dataplane.AttachDevice(int(index), role)
	if err != nil {
		delete(s.devices, index)
		return err
	}
	s.devices[index] = device{name: name, kind: kind, attachments: attachments}
	return nil
}

// DetachDevice implements Kernel.
func (s *System) DetachDevice(index uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, index)
	return s.dataplane.DetachDevice(int(index))
}

// Forget implements Kernel.
func (s *System) Forget(index uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.devices, index)
}

// Reset implements Kernel.
func (s *System) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.devices)
}

// AttachedDevices implements Kernel.
func (s *System) AttachedDevices() (map[uint32]bool, error) {
	list, err := s.dataplane.Attachments()
	if err != nil {
		return nil, err
	}
	hooks := map[uint32]int{}
	severed := map[uint32]bool{}
	for _, a := range list {
		if a.Kind == mbpf.KindCgroup {
			continue
		}
		hooks[uint32(a.Ifindex)]++
		severed[uint32(a.Ifindex)] = severed[uint32(a.Ifindex)] || a.Severed
	}
	whole := map[uint32]bool{}
	for index, n := range hooks {
		whole[index] = n >= 2 && !severed[index]
	}
	return whole, nil
}

// MissingAttachments implements Kernel.
func (s *System) MissingAttachments() ([]*agentv1.DiffDesiredResponse, error) {
	list, err := s.dataplane.Attachments()
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, a := range list {
		if a.Kind == mbpf.KindCgroup && !a.Severed {
			have[a.Program] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []*agentv1.DiffDesiredResponse
	for _, a := range s.sockets {
		if !have[a.Program] {
			missing = append(missing, &agentv1.DiffDesiredResponse{
				Object: "cgroup " + s.cgroup, Key: a.Program, Desired: "attached",
			})
		}
	}
	return missing, nil
}

// Attachments implements Kernel.
func (s *System) Attachments() []*agentv1.Attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*agentv1.Attachment
	for _, a := range s.sockets {
		list = append(list, &agentv1.Attachment{
			Program: a.Program, Target: s.cgroup, Hook: "cgroup/" + hookOf(a.Program), Adopted: a.Adopted,
		})
	}
	for _, d := range s.devices {
		for _, a := range d.attachments {
			list = append(list, &agentv1.Attachment{
				Program: a.Program, Target: d.name, Hook: fmt.Sprintf("%s/%s", a.Kind, a.Hook), Adopted: a.Adopted,
			})
		}
	}
	sortAttachments(list)
	return list
}

// Programs implements Kernel.
func (s *System) Programs() []*agentv1.Program {
	infos, err := s.dataplane.ProgramInfos()
	if err != nil {
		return nil // the rest of the status is worth more than an error
	}
	return Programs(infos)
}

// Features implements Kernel.
func (s *System) Features() []*agentv1.Feature { return s.features() }

// namedMap is a map that can be listed and dumped.
type namedMap struct {
	name string
	m    *ebpf.Map
	pin  string // if it is not the name
	// count and dump are nil where entries cannot be walked.
	count func() (int, error)
	dump  func(visit func(key, value string) error) error
}

func walk[K, V fmt.Stringer](name string, m *ebpf.Map) namedMap {
	return walkAs(name, m, K.String, V.String)
}

func walkAs[K, V any](name string, m *ebpf.Map, key func(K) string, value func(V) string) namedMap {
	return namedMap{name: name, m: m,
		count: func() (n int, err error) {
			err = mbpf.Each(m, func(K, V) bool { n++; return true })
			return n, err
		},
		dump: func(visit func(key, value string) error) error {
			var failed error
			err := mbpf.Each(m, func(k K, v V) bool {
				failed = visit(key(k), value(v))
				return failed == nil
			})
			return errors.Join(failed, err)
		},
	}
}

// walkArray lists the elements of an array that are not zero.
func walkArray[V interface {
	comparable
	fmt.Stringer
}](name string, m *ebpf.Map) namedMap {
	return walkArrayWhere(name, m, func(v V) bool {
		var zero V
		return v != zero
	})
}

// walkArrayWhere lists the elements of an array that are used.
func walkArrayWhere[V fmt.Stringer](name string, m *ebpf.Map, used func(V) bool) namedMap {
	each := func(f func(uint32, V) error) error {
		var failed error
		err := mbpf.Each(m, func(k uint32, v V) bool {
			if used(v) {
				failed = f(k, v)
			}
			return failed == nil
		})
		return errors.Join(failed, err)
	}
	return namedMap{name: name, m: m,
		count: func() (n int, err error) {
			err = each(func(uint32, V) error { n++; return nil })
			return n, err
		},
		dump: func(visit func(key, value string) error) error {
			return each(func(k uint32, v V) error { return visit(fmt.Sprint(k), v.String()) })
		},
	}
}

func entryString[A layout.IP](e layout.CtEntry[A]) string { return e.String() }

func familyMaps[A layout.IP](f *mbpf.FamilyMaps) []namedMap {
	suffix := fmt.Sprintf("_v%d", f.Family)
	list := []namedMap{
		walk[layout.FrontendKey[A], layout.Frontend]("frontends"+suffix, f.Frontends),
		walkArray[layout.Backend[A]]("backends"+suffix, f.Backends),
		walk[layout.RouteKey[A], layout.Route]("routes"+suffix, f.Routes),
		walk[layout.FragmentKey[A], layout.Fragment]("fragments"+suffix, f.Fragments),
		walk[layout.AffinityKey[A], layout.Affinity[A]]("affinity"+suffix, f.Affinity),
		// A freed slot keeps the bytes of its last socket.
		walkArrayWhere("connected"+suffix, f.Connected, func(c layout.Connected[A]) bool { return c.Cookie != 0 }),
		walkAs("spilled"+suffix, f.Spilled, func(cookie uint64) string { return fmt.Sprintf("socket %d", cookie) },
			layout.SockPeer[A].String),
	}
	for _, g := range []*mbpf.Generations{f.Embryonic, f.Established} {
		current, draining := g.Maps()
		m := walkAs(g.Name(), current, layout.CtKey[A].String, entryString[A])
		m.pin = g.Name() + "-current"
		list = append(list, m)
		if draining != nil {
			list = append(list, walkAs(g.Name()+"-draining", draining, layout.CtKey[A].String, entryString[A]))
		}
	}
	return list
}

func (s *System) maps() []namedMap {
	d := s.dataplane
	t := d.Tables()
	list := append(familyMaps[layout.V4](&t.V4), familyMaps[layout.V6](&t.V6)...)
	list = append(list,
		walkArray[layout.Config]("config", d.Config),
		walkAs("ids", t.IDs, layout.IDKey.String, func(v uint32) string { return fmt.Sprint(v) }),
		namedMap{name: "counters", m: d.Counters,
			count: func() (int, error) {
				counters, err := d.ReadCounters()
				return len(counters), err
			},
			dump: func(visit func(key, value string) error) error {
				counters, err := d.ReadCounters()
				if err != nil {
					return err
				}
				for k, v := range counters {
					if err := visit(describeCounter(k), fmt.Sprintf("packets %d bytes %d", v.Packets, v.Bytes)); err != nil {
						return err
					}
				}
				return nil
			},
		})
	sortMaps(list)
	return list
}

// TableSizes implements Kernel.
func (s *System) TableSizes() map[string]uint32 { return s.dataplane.TableSizes() }

// PrepareGrowth implements Kernel.
func (s *System) PrepareGrowth(sizes map[string]uint32) (Growth, error) {
	if err := s.attachedAll(); err != nil {
		return nil, err
	}
	g, err := s.dataplane.PrepareGrowth(sizes)
	if err != nil {
		return nil, err // not a Growth that holds nil
	}
	return g, nil
}

// PinTables implements Kernel.
func (s *System) PinTables() error { return s.dataplane.PinTables() }

// SNATPorts implements Kernel.
func (s *System) SNATPorts(first, last uint16) (uint16, uint16) {
	return s.dataplane.SNATPorts(first, last)
}

// Past tells whether programs of a release with other layouts are being
// succeeded, and which tables must be filled before that can go on.
func (s *System) Past() (found bool, blank []string) { return s.dataplane.Past() }

// Succeed takes over from them as far as it can be done now.
func (s *System) Succeed() (mbpf.Succession, error) {
	if err := s.attachedAll(); err != nil {
		return mbpf.Succession{}, err
	}
	return s.dataplane.Succeed(s.conntrack.Writing())
}

// attachedAll tells why programs of sockets are not attached. Until they are,
// maps must not be replaced: programs at sockets may read the ones there are.
func (s *System) attachedAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unattached != nil {
		return fmt.Errorf("programs of sockets are not attached: %w", s.unattached)
	}
	return nil
}

// describeCounter names the device, if it is still there.
func describeCounter(k layout.CounterKey) string {
	if dev, err := net.InterfaceByIndex(int(k.Ifindex)); err == nil {
		return fmt.Sprintf("%s %s", dev.Name, k.Reason)
	}
	return k.String()
}

func (s *System) pinOf(n namedMap) string {
	return filepath.Join(s.pinPath, "maps", cmp.Or(n.pin, n.name))
}

// Maps implements Kernel.
func (s *System) Maps() ([]*agentv1.MapState, error) {
	var list []*agentv1.MapState
	for _, n := range s.maps() {
		count, err := n.count()
		if err != nil {
			return nil, err
		}
		list = append(list, &agentv1.MapState{
			Name: n.name, Type: n.m.Type().String(), KeySize: n.m.KeySize(), ValueSize: n.m.ValueSize(),
			MaxEntries: n.m.MaxEntries(), Entries: uint32(count), PinPath: s.pinOf(n),
		})
	}
	return list, nil
}

// Capacities implements Kernel.
func (s *System) Capacities() map[string]uint64 {
	capacities := map[string]uint64{}
	for _, n := range s.maps() {
		capacities[n.name] = uint64(n.m.MaxEntries())
	}
	return capacities
}

// DumpMap implements Kernel.
func (s *System) DumpMap(name string, visit func(key, value string) error) error {
	for _, n := range s.maps() {
		if n.name == name {
			return n.dump(visit)
		}
	}
	return fmt.Errorf("%q: %w", name, dataplane.ErrNoMap)
}

// Counters returns the counters of drops and refusals.
func (s *System) Counters() (map[layout.CounterKey]layout.Counter, error) {
	return s.dataplane.ReadCounters()
}
