// SPDX-License-Identifier: Apache-2.0

package dirwatch

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// await fails unless the channel gives something soon.
func await[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFollow looks once the directories are watched, after changes in each of
// them, and no more when one of them is gone.
func TestFollow(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir(), filepath.Join(t.TempDir(), "second") + "/"}
	must(t, os.Mkdir(dirs[1], 0o755))
	looks, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Follow(t.Context(), time.Millisecond, func() { looks <- struct{}{} }, dirs...)
	}()
	await(t, "the first look", looks)
	for _, dir := range dirs {
		must(t, os.Mkdir(filepath.Join(dir, "file"), 0o755))
		await(t, "a look after a change in "+dir, looks)
	}
	must(t, os.Remove(filepath.Join(dirs[1], "file")))
	await(t, "a look after what was in it is gone", looks)
	must(t, os.Remove(dirs[1]))
	if err := await(t, "the end", ended); err == nil || !strings.Contains(err.Error(), "second: it was removed") {
		t.Fatalf("error %v", err)
	}
}

// TestFollowGathers looks once at changes that come together.
func TestFollowGathers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	looks, ended := make(chan struct{}, 10), make(chan error, 1)
	go func() { ended <- Follow(ctx, time.Second, func() { looks <- struct{}{} }, dir) }()
	await(t, "the first look", looks)
	for _, name := range []string{"a", "b", "c"} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	await(t, "a look after the changes", looks)
	cancel()
	must(t, await(t, "the end", ended))
	if more := len(looks); more != 0 {
		t.Fatalf("%d more looks", more)
	}
}

// TestFollowNothing is told by an error.
func TestFollowNothing(t *testing.T) {
	t.Parallel()
	look := func() { t.Error("looked") }
	if err := Follow(t.Context(), time.Millisecond, look, t.TempDir(), "/nonexistent/dir"); err == nil || !strings.Contains(err.Error(), "/nonexistent/dir") {
		t.Fatalf("error %v", err)
	}
}
