// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-project/millrace/agent/internal/held"
)

func openAt(t *testing.T, options Options) (*Log, *held.Store, Recovery) {
	t.Helper()
	store := held.New()
	l, recovery, err := Open(options, store)
	if err != nil {
		t.Fatal(err)
	}
	return l, store, recovery
}

// places returns a state directory and a fallback.
func places(t *testing.T) Options {
	return Options{Dir: filepath.Join(t.TempDir(), "state"), Fallback: filepath.Join(t.TempDir(), "memory", "log"), Boot: boot}
}

// spoil makes every write to the open log fail.
func spoil(t *testing.T, l *Log) {
	t.Helper()
	readOnly, err := os.Open(l.path())
	if err != nil {
		t.Fatal(err)
	}
	l.file.Close()
	l.file = readOnly
}

func appendSome(t *testing.T, l *Log, r *rand.Rand, n int) {
	t.Helper()
	for i := range n {
		if err := l.Append(randomBatch(r, i)); err != nil {
			t.Fatal(err)
		}
	}
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist)
}

// TestGoesOnInMemory lets the directory fail, restarts with the log in memory,
// and lets it come home; and reboots with it.
func TestGoesOnInMemory(t *testing.T) {
	options := places(t)
	r := rand.New(rand.NewPCG(8, 8))
	l, store, _ := openAt(t, options)
	appendSome(t, l, r, 20)
	spoil(t, l)
	appendSome(t, l, r, 20)
	if !l.Away() || !strings.Contains(l.Fault(), options.Dir) {
		t.Fatalf("away %v, fault %q", l.Away(), l.Fault())
	}
	l.close() //nolint:errcheck // as a crash does

	elsewhere := options
	elsewhere.Boot = "another"
	elsewhere.Fallback = filepath.Join(t.TempDir(), "log")
	data, err := os.ReadFile(options.Fallback)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(elsewhere.Fallback, data, 0o600); err != nil {
		t.Fatal(err)
	}

	l, again, recovery := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" || !recovery.SameBoot || recovery.Damage != "" {
		t.Fatalf("after a restart: %+v %s", recovery, diff)
	}
	appendSome(t, l, r, 5)
	if err := l.tend(time.Now()); err != nil {
		t.Fatal(err)
	}
	if l.Away() || l.Fault() != "" || !missing(options.Fallback) {
		t.Fatalf("did not come home: %q", l.Fault())
	}
	appendSome(t, l, r, 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, home, recovery := openAt(t, options)
	if diff := cmp.Diff(contents(again), contents(home)); diff != "" || recovery.Damage != "" || l.Fault() != "" {
		t.Fatalf("at home: %+v %s", recovery, diff)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	// What another boot left in memory is of no use.
	if err := os.Remove(filepath.Join(options.Dir, fileName)); err != nil {
		t.Fatal(err)
	}
	l, store, _ = openAt(t, elsewhere)
	defer l.Close()
	if len(store.Names()) != 0 || !missing(elsewhere.Fallback) {
		t.Fatalf("a fallback of another boot was taken")
	}
}

// TestFallbackDamaged damages the log in memory where it says which boot it is of,
// and elsewhere: the older one in the directory is not programmed instead.
func TestFallbackDamaged(t *testing.T) {
	for what, do := range map[string]func([]byte) []byte{
		"empty":                 func([]byte) []byte { return nil },
		"another format":        func(log []byte) []byte { log[len(magic)-1] = '9'; return log },
		"length of the first":   func(log []byte) []byte { log[len(magic)+2] ^= 1; return log },
		"checksum of the first": func(log []byte) []byte { log[len(magic)+4] ^= 1; return log },
		"cut off in the first":  func(log []byte) []byte { return log[:len(magic)+headerSize+3] },
		"payload of the second": func(log []byte) []byte { log[len(magic)+2*headerSize+len(boot)+12] ^= 1; return log },
	} {
		t.Run(what, func(t *testing.T) {
			options := places(t)
			r := rand.New(rand.NewPCG(18, 18))
			l, store, _ := openAt(t, options)
			appendSome(t, l, r, 20)
			position := store.Meta().Position
			spoil(t, l)
			appendSome(t, l, r, 20)
			l.close() //nolint:errcheck // as a crash does
			log, err := os.ReadFile(options.Fallback)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(options.Fallback, do(log), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, again := range []bool{false, true} {
				l, store, recovery := openAt(t, options)
				if len(store.Names()) > 0 || store.Meta().InSync || !recovery.SameBoot {
					t.Fatalf("again %v: %d names, %+v, %+v", again, len(store.Names()), store.Meta(), recovery)
				}
				if what != "payload of the second" && !cmp.Equal(position, store.Meta().Position) {
					t.Fatalf("again %v: position %v, want %v", again, store.Meta().Position, position)
				}
				if discarded := recovery.Discarded && recovery.Damage != ""; discarded == again {
					t.Fatalf("again %v: %+v", again, recovery)
				}
				if !l.Away() {
					t.Fatalf("not in memory: %q", l.Fault())
				}
				if again {
					appendSome(t, l, r, 2)
					if err := l.tend(time.Now()); err != nil || l.Away() || !missing(options.Fallback) {
						t.Fatalf("did not come home: %v, %q", err, l.Fault())
					}
				}
				l.close() //nolint:errcheck // as a crash does
			}
		})
	}
}

// TestMemoryEmptied removes the log in memory under a running agent: nothing of
// it is lost, and it comes home.
func TestMemoryEmptied(t *testing.T) {
	options := places(t)
	r := rand.New(rand.NewPCG(14, 14))
	l, store, _ := openAt(t, options)
	appendSome(t, l, r, 5)
	spoil(t, l)
	appendSome(t, l, r, 5)
	if err := os.RemoveAll(filepath.Dir(options.Fallback)); err != nil {
		t.Fatal(err)
	}
	appendSome(t, l, r, 5)
	if err := l.tend(time.Now()); err != nil || l.Away() || l.Fault() != "" {
		t.Fatalf("did not come home: %v, fault %q", err, l.Fault())
	}
	appendSome(t, l, r, 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, again, recovery := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" || recovery.Damage != "" {
		t.Fatalf("at home: %+v %s", recovery, diff)
	}
	l.Close()
}

// TestSyncFails lets fsync fail: what of the file is on the disk is unknown, so
// that it is written anew.
func TestSyncFails(t *testing.T) {
	options := places(t)
	l, store, _ := openAt(t, options)
	r := rand.New(rand.NewPCG(9, 9))
	appendSome(t, l, r, 3)
	var pipe [2]*os.File // cannot be synced
	var err error
	if pipe[0], pipe[1], err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	defer pipe[0].Close()
	l.file.Close()
	l.file = pipe[1]
	if err := l.sync(); err == nil {
		t.Fatal("no error")
	}
	if !l.Away() {
		t.Fatalf("fault %q, but not in memory", l.Fault())
	}
	appendSome(t, l, r, 3)
	if err := l.tend(time.Now()); err != nil || l.Fault() != "" {
		t.Fatalf("%v, fault %q", err, l.Fault())
	}
	l.Close()
	_, again, _ := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" {
		t.Fatal(diff)
	}
}

// TestNowhere has a directory that cannot be made: the log begins in memory, or
// refuses batches if there is no memory either, and never refuses to open.
func TestNowhere(t *testing.T) {
	options := places(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options.Dir = filepath.Join(file, "state")
	r := rand.New(rand.NewPCG(10, 10))
	l, store, _ := openAt(t, options)
	if !l.Away() {
		t.Fatalf("fault %q, but not in memory", l.Fault())
	}
	appendSome(t, l, r, 3)
	if err := l.tend(time.Now()); err == nil || !l.Away() {
		t.Fatalf("came home to a place that is none: %v", err)
	}
	if err := l.tend(time.Now()); err != nil {
		t.Fatalf("tried again at once: %v", err)
	}
	l.Close()
	l, again, _ := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" {
		t.Fatal(diff)
	}
	l.Close()

	options.Fallback = ""
	l, store, _ = openAt(t, options)
	if err := l.Append(randomBatch(r, 1)); err == nil || len(store.Names()) > 0 {
		t.Fatalf("%v; held %v", err, store.Names())
	}
	// The place is mended: everything goes on.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(options.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.tend(time.Now().Add(time.Hour)); err != nil || l.Fault() != "" {
		t.Fatalf("%v, fault %q", err, l.Fault())
	}
	appendSome(t, l, r, 3)
	l.Close()
	_, again, _ = openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" {
		t.Fatal(diff)
	}
}

// TestRewriteWhileAppending rewrites all the while batches come.
func TestRewriteWhileAppending(t *testing.T) {
	options := places(t)
	l, store, _ := openAt(t, options)
	done := make(chan error)
	quit := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			if err := l.rewrite(l.path(), false); err != nil {
				done <- err
				return
			}
		}
	}()
	appendSome(t, l, rand.New(rand.NewPCG(11, 11)), 3000)
	close(quit)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, again, recovery := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" || recovery.Damage != "" {
		t.Fatalf("%+v %s", recovery, diff)
	}
}

// TestOtherFormat finds a log of another version, and a file that is no log.
func TestOtherFormat(t *testing.T) {
	for content, want := range map[string]string{
		"MILLLOG9" + strings.Repeat("x", 100): "another version",
		"#!/bin/sh\nexit 0\n":                 "no state log",
		"MIL":                                 "within its first word",
	} {
		options := places(t)
		if err := os.MkdirAll(options.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(options.Dir, fileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		l, store, recovery := openAt(t, options)
		if !strings.Contains(recovery.Damage, want) || recovery.TruncatedBytes != int64(len(content)) {
			t.Errorf("%q: %+v, want %q", content, recovery, want)
		}
		appendSome(t, l, rand.New(rand.NewPCG(12, 12)), 2)
		l.Close()
		_, again, recovery := openAt(t, options)
		if diff := cmp.Diff(contents(store), contents(again)); diff != "" || recovery.Damage != "" {
			t.Errorf("%q: %+v %s", content, recovery, diff)
		}
	}
}

// TestUnreadable has something at the log's place that cannot be read: the log
// goes on in memory, through restarts, until the place is free.
func TestUnreadable(t *testing.T) {
	options := places(t)
	path := filepath.Join(options.Dir, fileName)
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(13, 13))
	l, store, _ := openAt(t, options)
	appendSome(t, l, r, 3)
	if err := l.tend(time.Now()); err == nil || !l.Away() {
		t.Fatalf("came home to a directory: %v", err)
	}
	l.Close()
	l, again, recovery := openAt(t, options)
	if diff := cmp.Diff(contents(store), contents(again)); diff != "" || !recovery.SameBoot {
		t.Fatalf("%+v %s", recovery, diff)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := l.tend(time.Now()); err != nil || l.Fault() != "" {
		t.Fatalf("%v, fault %q", err, l.Fault())
	}
	l.Close()
}
