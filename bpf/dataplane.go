// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
)

// Options say where the dataplane lives and how large its maps are. Sizes
// apply when a map is created; one that is pinned already keeps its own, see
// [Dataplane.Adopted]. Zero stands for the default.
type Options struct {
	// PinPath is a directory on a BPF filesystem, created with mode 0700.
	PinPath string

	MaxFrontends   uint32 // per family; default 262,144
	MaxBackends    uint32 // per family; default 524,288
	MaxRoutes      uint32 // per family; default 65,536
	MaxEmbryonic   uint32 // per family; default 65,536
	MaxEstablished uint32 // per family; default 524,288
	MaxSpilled     uint32 // connected sockets beyond layout.ConnectedSlots, per family; default 131,072
	MaxAffinity    uint32 // clients that keep a backend, per family; default 65,536
	MaxIDs         uint32 // default 262,144

	// Lock, if there is one, is the lock of PinPath: it is taken anew where pins
	// that somebody removed are restored.
	Lock *Lock

	// SocketsOnly loads the socket programs alone; AttachDevice then fails.
	SocketsOnly bool
	// ForceClsact attaches to devices as kernels without tcx need it.
	ForceClsact bool
	// NoSetRetval loads the programs as kernels without bpf_set_retval need
	// them: refused connections are then answered by packets.
	NoSetRetval bool
	// NoMPTCPSock does the same for bpf_skc_to_mptcp_sock.
	NoMPTCPSock bool
}

// Dataplane holds the maps and programs. Its methods may be called from many
// goroutines.
type Dataplane struct {
	V4, V6 *FamilyMaps

	Config   *ebpf.Map // array: u32 0 -> layout.Config
	IDs      *ebpf.Map // hash: layout.IDKey -> u32
	Counters *ebpf.Map // per-CPU hash: layout.CounterKey -> []layout.Counter

	opts        Options
	generations []*Generations

	objects []object // what the programs are loaded from
	tcx     bool
	loaded  bool // rather than adopted
	// use guards what a growth replaces: tables and programs.
	use sync.RWMutex
	programSet
	// strays are programs of a growth that failed and that attachments may run.
	strays map[ebpf.ProgramID]string
	// described are all objects, even if only some are loaded.
	described       []object
	describedDigest string
	conversions     []conversion
	layouts         Layouts              // that the objects want; nil when the pinned ones are known to be these
	turn            int                  // 0 or 1, the other one than the past's
	past            *past                // nil but while a generation with other layouts is succeeded
	maps            map[string]*ebpf.Map // those that programs name
	adopted         []Adopted

	configMu sync.Mutex // of Config
	behind   bool       // programs of the past run before these

	succeeding sync.Mutex // held by Succeed, before mu

	mu      sync.Mutex // guards attachments' pins
	barrier barrier
}

// Adopted tells of a map that was pinned already and is used as it is.
type Adopted struct {
	Name       string
	MaxEntries uint32
	Wanted     uint32 // what Options ask for
	Grows      bool   // it can be replaced while the dataplane is open: see Generations
}

// ErrLayout is wrapped by the error of [Open] when a pinned map's layout is not
// the programs'.
var ErrLayout = errors.New("layout of a pinned map differs from the programs'")

// Open creates or adopts the maps, and adopts the programs or loads them; it
// attaches nothing. Existing attachments go on with the programs they have
// until AttachCgroup and AttachDevice exchange them.
func Open(opts Options) (*Dataplane, error) { return openRelease(opts, objects, conversions) }

// openRelease opens a dataplane of the given objects, which may succeed one with
// other layouts.
func openRelease(opts Options, all []object, known []conversion) (_ *Dataplane, err error) {
	if opts.PinPath != "" {
		if err := finishRetiring(opts.PinPath); err != nil {
			return nil, err
		}
	}
	if err := makePinDirs(opts.PinPath); err != nil {
		return nil, err
	}
	from := all
	if opts.SocketsOnly {
		from = slices.DeleteFunc(slices.Clone(from), func(o object) bool { return !strings.HasPrefix(o.name, "sock_") })
	}
	d := &Dataplane{opts: opts, objects: from, described: all, describedDigest: objectsDigest(all), conversions: known,
		maps: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := d.changeLayouts(); err != nil {
		return nil, err
	}
	if err := d.openPast(); err != nil {
		return nil, err
	}
	d.tcx = !opts.ForceClsact && haveTCX() == nil
	spec, err := d.mapSpecs()
	if err != nil {
		return nil, err
	}
	if err := d.openMaps(spec); err != nil {
		return nil, err
	}
	// An agent that ended when the past was gone may have left it set.
	if d.past != nil || slices.ContainsFunc(d.adopted, func(a Adopted) bool { return a.Name == "config" }) {
		if err := d.setBehind(d.past != nil); err != nil {
			return nil, err
		}
	}
	return d, d.openPrograms()
}

// mapSpecs reads the description of all maps. Every object declares every map;
// the smallest is read soonest.
func (d *Dataplane) mapSpecs() (*ebpf.CollectionSpec, error) { return smallest(d.objects).spec() }

// openPrograms adopts the programs or loads them. When it returns, every
// attachment that ran a program of an earlier agent runs one of these.
func (d *Dataplane) openPrograms() error {
	left := stages(d.opts.PinPath)
	grow := d.tooSmall()
	if len(grow) == 0 && len(left) == 0 && d.adoptPrograms(d.programsDir()) {
		return nil
	}
	// What attachments may run: an earlier agent's programs, and those that it
	// was about to exchange them for when it ended.
	known := map[ebpf.ProgramID]string{}
	for _, dir := range append([]string{d.programsDir()}, left...) {
		if dir != d.programsDir() {
			dir = filepath.Join(dir, "programs")
		}
		set, err := pinnedSet(dir)
		if err != nil {
			return err
		}
		defer set.close()
		maps.Copy(known, set.byID())
	}
	d.loaded = true
	s, err := d.newStage(grow)
	if err == nil {
		err = s.copyTables()
	}
	if err != nil && len(grow) > 0 {
		// Better as large as it was than not at all; Adopted tells.
		if s != nil {
			s.abandon()
		}
		s, err = d.newStage(nil)
	}
	// The objects' type information is garbage now, and large beside
	// everything else that the agent keeps.
	debug.FreeOSMemory()
	if err != nil {
		return err
	}
	if err := d.exchangeLinks(known, s.programSet); err != nil {
		return err // the pins stay, and the next start goes on
	}
	if err := s.commit(); err != nil {
		return err
	}
	for name := range s.fresh {
		d.adopted = append(slices.DeleteFunc(d.adopted, func(a Adopted) bool { return a.Name == name }),
			Adopted{Name: name, MaxEntries: s.fresh[name].MaxEntries(), Wanted: s.fresh[name].MaxEntries()})
	}
	return nil
}

// tooSmall returns the sizes of tables that are smaller than asked for.
func (d *Dataplane) tooSmall() map[string]uint32 {
	grow := map[string]uint32{}
	for _, a := range d.adopted {
		if isTable(a.Name) && a.MaxEntries < a.Wanted {
			grow[a.Name] = a.Wanted
		}
	}
	return grow
}

// load loads all programs on the maps.
func (d *Dataplane) load(on map[string]*ebpf.Map) (programSet, error) {
	programs := map[string]*ebpf.Program{}
	for _, o := range d.objects {
		spec, err := o.spec()
		if err == nil {
			err = d.loadObject(o.name, spec, on, programs)
		}
		if err != nil {
			programSet{programs: programs}.close()
			return programSet{}, err
		}
	}
	return newProgramSet(programs)
}

// Close closes all file descriptors. What is pinned stays and goes on working.
func (d *Dataplane) Close() error {
	d.programSet.close()
	for _, m := range d.maps {
		m.Close()
	}
	for _, f := range []*FamilyMaps{d.V4, d.V6} {
		if f != nil {
			f.Embryonic.close()
			f.Established.close()
		}
	}
	d.barrier.close()
	return nil
}

// Adopted lists the maps that were there before.
func (d *Dataplane) Adopted() []Adopted { return d.adopted }

// Loaded tells whether the programs were loaded; else an earlier agent's were
// adopted.
func (d *Dataplane) Loaded() bool { return d.loaded }

// Program returns a loaded program by name (sock_connect4, tc_pod_ingress,
// ...), or nil. It belongs to d.
func (d *Dataplane) Program(name string) *ebpf.Program {
	d.use.RLock()
	defer d.use.RUnlock()
	return d.programs[name]
}

// loadObject loads an object's programs on the shared maps.
func (d *Dataplane) loadObject(name string, spec *ebpf.CollectionSpec, on map[string]*ebpf.Map, to map[string]*ebpf.Program) error {
	for variable, present := range d.variants() {
		if v := spec.Variables[variable]; v != nil {
			if err := v.Set(present); err != nil {
				return fmt.Errorf("set variant of %s: %w", name, err)
			}
		}
	}
	for mapName, m := range on {
		s := spec.Maps[mapName]
		if s == nil {
			return fmt.Errorf("object %s does not declare map %s", name, mapName)
		}
		s.MaxEntries = m.MaxEntries()
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: on})
	if err != nil {
		return fmt.Errorf("load object %s: %w", name, err)
	}
	defer coll.Close()
	for prog := range spec.Programs {
		to[prog] = coll.DetachProgram(prog)
	}
	return nil
}
