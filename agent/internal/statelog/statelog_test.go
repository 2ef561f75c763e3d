// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-project/millrace/agent/internal/held"
	dataplanev1 "github.com/millrace-project/millrace/proto/millrace/dataplane/v1"
)

const boot = "11111111-2222-3333-4444-555555555555"

func name(i int) held.Name {
	return held.Name{Type: dataplanev1.ResourceType(1 + i%5), Key: fmt.Sprintf("ns/name-%d", i)}
}

// randomBatch changes some of 40 names.
func randomBatch(r *rand.Rand, n int) *held.Batch {
	b := held.NewBatch()
	for range 1 + r.IntN(6) {
		at := name(r.IntN(40))
		if r.IntN(3) == 0 {
			b.Remove(at)
			continue
		}
		data := make([]byte, r.IntN(200))
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		b.Upsert(at, held.Entry{Version: r.Uint64(), Data: data})
	}
	b.Meta = held.Meta{Epoch: "e/1", Position: map[string]uint64{"services": uint64(n), "nodes": 7}, InSync: n%2 == 0}
	return b
}

// contents returns everything a store holds, in a form that compares.
func contents(s *held.Store) map[string]string {
	all := map[string]string{"meta": fmt.Sprintf("%+v", s.Meta())}
	for _, n := range s.Names() {
		e, _ := s.Entry(n)
		all[n.String()] = fmt.Sprintf("%d %x", e.Version, e.Data)
	}
	return all
}

func open(t *testing.T, dir string) (*Log, *held.Store, Recovery) {
	t.Helper()
	store := held.New()
	l, recovery, err := Open(Options{Dir: dir, Boot: boot}, store)
	if err != nil {
		t.Fatal(err)
	}
	return l, store, recovery
}

// fill writes n random batches and returns the contents after each, the first
// being of the empty log, and the length of the log after each.
func fill(t *testing.T, dir string, r *rand.Rand, n int) (states []map[string]string, lengths []int64) {
	t.Helper()
	l, store, _ := open(t, dir)
	states, lengths = append(states, contents(store)), append(lengths, l.Size())
	for i := range n {
		b := randomBatch(r, i)
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
		states, lengths = append(states, contents(store)), append(lengths, l.Size())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return states, lengths
}

func TestReplay(t *testing.T) {
	dir := t.TempDir()
	states, _ := fill(t, dir, rand.New(rand.NewPCG(1, 1)), 200)
	l, store, recovery := open(t, dir)
	defer l.Close()
	if recovery.Damage != "" || !recovery.SameBoot || recovery.Records != 201 {
		t.Fatalf("recovery %+v, want 201 records of the same boot and no damage", recovery)
	}
	if diff := cmp.Diff(states[200], contents(store)); diff != "" {
		t.Fatal(diff)
	}
	other := held.New()
	other.Apply(&held.Batch{Meta: store.Meta()})
	for _, n := range store.Names() {
		e, _ := store.Entry(n)
		other.Apply(&held.Batch{Upserts: map[held.Name]held.Entry{n: e}, Meta: store.Meta()})
	}
	if store.Digests() != other.Digests() || store.Bytes() != other.Bytes() {
		t.Fatal("digests or size kept up to date differ from those made at once")
	}
}

func TestAnotherBoot(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir, rand.New(rand.NewPCG(2, 2)), 3)
	store := held.New()
	l, recovery, err := Open(Options{Dir: dir, Boot: "another"}, store)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if recovery.SameBoot || recovery.PreviousBoot != boot {
		t.Fatalf("recovery %+v, want another boot", recovery)
	}
	l.Close()
	l, recovery, err = Open(Options{Dir: dir, Boot: "another"}, held.New())
	if err != nil || !recovery.SameBoot {
		t.Fatalf("recovery %+v, %v: the boot of the last writer was not recorded", recovery, err)
	}
	l.Close()
}

// TestTorn cuts the log at every length around the ends of records, and at
// every 17th besides: what is replayed is the state after the last batch that is
// there in whole, and the log can be written on.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	states, lengths := fill(t, dir, rand.New(rand.NewPCG(3, 3)), 12)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	near := func(cut int) bool { // around the ends of records every byte counts
		for _, length := range lengths {
			if d := int64(cut) - length; d >= -2 && d <= headerSize+2 {
				return true
			}
		}
		return false
	}
	for cut := range whole {
		if cut%17 != 0 && !near(cut) {
			continue
		}
		torn := t.TempDir()
		if err := os.WriteFile(filepath.Join(torn, fileName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want, clean := 0, cut == 0
		for i, length := range lengths {
			if int64(cut) >= length {
				want = i
			}
			clean = clean || int64(cut) == length
		}
		clean = clean || cut == len(magic)
		l, store, recovery := open(t, torn)
		if diff := cmp.Diff(states[want], contents(store)); diff != "" {
			t.Fatalf("cut at %d: %s", cut, diff)
		}
		if clean != (recovery.Damage == "") {
			t.Fatalf("cut at %d: recovery %+v", cut, recovery)
		}
		b := randomBatch(rand.New(rand.NewPCG(4, uint64(cut))), 99)
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
		l.Close()
		l, again, recovery := open(t, torn)
		if diff := cmp.Diff(contents(store), contents(again)); diff != "" || recovery.Damage != "" {
			t.Fatalf("cut at %d, written on: %+v %s", cut, recovery, diff)
		}
		l.Close()
	}
}

// TestLengthDamaged flips each byte of the headers of a record in the middle and
// of the last one. Their lengths then often reach past the end, as that of a
// record does that was never written in whole; but what they and all that
// follows say is in the kernel.
func TestLengthDamaged(t *testing.T) {
	dir := t.TempDir()
	states, lengths := fill(t, dir, rand.New(rand.NewPCG(15, 15)), 30)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range []int{0, 12, 29} {
		for at := range headerSize {
			for _, flipped := range []byte{1, 0x40, 0xff} {
				bad := append([]byte(nil), whole...)
				bad[lengths[record]+int64(at)] ^= flipped
				copied := t.TempDir()
				if err := os.WriteFile(filepath.Join(copied, fileName), bad, 0o600); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("byte %d of the header of record %d, flipped by %#x", at, record, flipped)
				if recovery := checkDamaged(t, what, copied, boot, states); !recovery.Discarded {
					t.Errorf("%s: taken for a record that was cut off: %+v", what, recovery)
				}
			}
		}
	}
}

// TestLongTorn cuts a record of megabytes off, of data that often looks like the
// beginning of a record: it is still told from damage.
func TestLongTorn(t *testing.T) {
	dir := t.TempDir()
	states, lengths := fill(t, dir, rand.New(rand.NewPCG(16, 16)), 3)
	l, _, _ := open(t, dir)
	b := held.NewBatch()
	data := make([]byte, 4<<20)
	r := rand.New(rand.NewPCG(17, 17))
	for i := 0; i+12 < len(data); i += 12 { // length, checksum, kind and so on
		copy(data[i:], []byte{byte(r.Uint32()), byte(r.Uint32()), 0, 0, 1, 2, 3, 4, byte(r.IntN(4)), 1, 'e', byte(r.IntN(3))})
	}
	b.Upsert(name(1), held.Entry{Version: 1, Data: data})
	if err := l.Append(b); err != nil {
		t.Fatal(err)
	}
	size := l.Size()
	l.Close()
	for _, cut := range []int64{lengths[3] + 9, lengths[3] + 3<<20, size - 1} {
		copied := t.TempDir()
		whole, err := os.ReadFile(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, fileName), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l, store, recovery := open(t, copied)
		l.Close()
		if diff := cmp.Diff(states[3], contents(store)); diff != "" || recovery.Discarded || recovery.Damage == "" {
			t.Fatalf("cut at %d: %+v %s", cut, recovery, diff)
		}
	}
	if at, known := laterRecord(data, 1<<20); at != 0 || known {
		t.Fatalf("a search beyond its budget returned %d, %v", at, known)
	}
}

// TestCorruption flips bits anywhere: a replay ends in a state that the log
// once was in, and says that it is damaged.
func TestCorruption(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(5, 5))
	states, _ := fill(t, dir, r, 30)
	whole, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 200 {
		bad := append([]byte(nil), whole...)
		at := r.IntN(len(bad))
		for i := at; i < min(len(bad), at+1+r.IntN(20)); i++ {
			bad[i] ^= byte(1 + r.IntN(255))
		}
		for _, here := range []string{boot, "another"} {
			copied := t.TempDir()
			if err := os.WriteFile(filepath.Join(copied, fileName), bad, 0o600); err != nil {
				t.Fatal(err)
			}
			checkDamaged(t, fmt.Sprintf("round %d: damage at %d", round, at), copied, here, states)
		}
	}
}

// checkDamaged opens a damaged log. Replayed at another boot it is a state that
// once was; at the boot that wrote it nothing is taken of it but how far it had
// come, unless only the last record is cut off: then it is the state before that.
func checkDamaged(t *testing.T, what, dir, here string, states []map[string]string) Recovery {
	t.Helper()
	store := held.New()
	l, recovery, err := Open(Options{Dir: dir, Boot: here}, store)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if recovery.Damage == "" || recovery.TruncatedBytes == 0 {
		t.Fatalf("%s went unnoticed: %+v", what, recovery)
	}
	got, known := contents(store), false
	for _, s := range states {
		known = known || maps.Equal(s, got)
	}
	if here == boot && !recovery.SameBoot && len(store.Names()) > 0 {
		t.Fatalf("%s hides who wrote the log, yet of it was taken: %v", what, got)
	}
	if recovery.SameBoot && !recovery.Discarded {
		if diff := cmp.Diff(states[len(states)-2], got); diff != "" {
			t.Fatalf("%s took the node backwards by more than the last record (%s): %s", what, recovery.Damage, diff)
		}
	}
	if recovery.Discarded {
		if here != boot {
			t.Fatalf("%s: a log of another boot was discarded", what)
		}
		known = len(store.Names()) == 0 && !store.Meta().InSync
	}
	if !known {
		t.Fatalf("%s made a state that never was: %v", what, got)
	}
	again := held.New()
	l, mended, err := Open(Options{Dir: dir, Boot: here}, again)
	if err != nil || mended.Damage != "" || mended.Discarded {
		t.Fatalf("%s: mended, it is damaged still: %+v, %v", what, mended, err)
	}
	l.Close()
	if diff := cmp.Diff(got, contents(again)); diff != "" {
		t.Fatalf("%s: %s", what, diff)
	}
	return recovery
}

func TestCompact(t *testing.T) {
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(6, 6))
	l, store, _ := open(t, dir)
	compacted := 0
	for i := range 6000 {
		b := randomBatch(r, i)
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
		before := l.Size()
		if err := l.tend(time.Now()); err != nil {
			t.Fatal(err)
		}
		if l.Size() < before {
			compacted++
		}
	}
	if compacted == 0 || l.Size() > 2*minCompact {
		t.Fatalf("compacted %d times, %d bytes", compacted, l.Size())
	}
	want := contents(store)
	l.Close()
	l, again, recovery := open(t, dir)
	defer l.Close()
	if diff := cmp.Diff(want, contents(again)); diff != "" || recovery.Damage != "" || !recovery.SameBoot {
		t.Fatalf("%+v %s", recovery, diff)
	}
}

// TestUnfinishedCompaction leaves the file of a compaction that died behind.
func TestUnfinishedCompaction(t *testing.T) {
	dir := t.TempDir()
	states, _ := fill(t, dir, rand.New(rand.NewPCG(7, 7)), 5)
	left := filepath.Join(dir, fileName+".new")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, store, _ := open(t, dir)
	defer l.Close()
	if diff := cmp.Diff(states[5], contents(store)); diff != "" {
		t.Fatal(diff)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the left-over is still there: %v", err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	l, _, _ := open(t, dir)
	defer l.Close()
	if _, _, err := Open(Options{Dir: dir, Boot: boot}, held.New()); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v, want ErrLocked", err)
	}
}

func FuzzReplay(f *testing.F) {
	f.Add([]byte(magic))
	f.Add(append([]byte(magic), appendRecord(nil, func(b []byte) []byte {
		return appendBatch(b, randomBatch(rand.New(rand.NewPCG(1, 2)), 1))
	})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, fileName), data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, _, err := Open(Options{Dir: dir, Boot: boot}, held.New())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		l, recovery, err := Open(Options{Dir: dir, Boot: boot}, held.New())
		if err != nil || recovery.Damage != "" {
			t.Fatalf("a log that was mended is damaged still: %+v %v", recovery, err)
		}
		l.Close()
	})
}

// TestBrokenMends goes on once the rest of a failed write can be cut off.
func TestBrokenMends(t *testing.T) {
	dir := t.TempDir()
	l, _, _ := open(t, dir)
	r := rand.New(rand.NewPCG(1, 2))
	want := held.New()
	append1 := func(n int) {
		b := randomBatch(r, n)
		if err := l.Append(b); err != nil {
			t.Fatal(err)
		}
		want.Apply(b)
	}
	append1(1)
	if _, err := l.file.WriteString("half a record"); err != nil {
		t.Fatal(err)
	}
	l.broken = errors.New("could not be undone")
	append1(2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, got, recovery := open(t, dir)
	defer l.Close() //nolint:errcheck // only read
	if diff := cmp.Diff(contents(want), contents(got)); diff != "" || recovery.Damage != "" {
		t.Fatalf("damage %q, %s", recovery.Damage, diff)
	}
}
