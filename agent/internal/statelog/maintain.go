// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/files"
	"github.com/millrace-project/millrace/agent/internal/held"
)

const (
	syncEvery = time.Second
	firstTry  = time.Second
	lastTry   = 30 * time.Second
)

// Maintain syncs and compacts the log, and brings it home from memory, until ctx
// ends. It is the only one to wait for the disk. told is called when the fault
// may have changed; failed with every error.
func (l *Log) Maintain(ctx context.Context, told func(), failed func(error)) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		before := l.Fault()
		if err := errors.Join(l.sync(), l.tend(time.Now())); err != nil {
			failed(err)
		}
		if l.Fault() != before {
			told()
		}
		select {
		case <-ctx.Done():
			return
		case <-l.due:
		case <-tick.C:
		}
	}
}

// tend brings the log home if it is not, and compacts it if most of it is
// superseded. After a failure it rests.
func (l *Log) tend(now time.Time) error {
	l.mu.Lock()
	ill, away, long := l.fault != nil, l.away, l.superseded()
	l.mu.Unlock()
	if !ill && !long || now.Before(l.nextTry) {
		return nil
	}
	err := l.rewrite(l.path(), false)
	if err != nil && ill {
		l.mu.Lock()
		l.fault = err // why it still is not well
		l.mu.Unlock()
	}
	if err != nil && away && long {
		err = errors.Join(err, l.rewrite(l.options.Fallback, true))
	}
	if err == nil {
		l.backoff, l.nextTry = 0, time.Time{}
		return nil
	}
	l.backoff = min(max(firstTry, 2*l.backoff), lastTry)
	l.nextTry = now.Add(l.backoff)
	return err
}

// superseded tells whether more than half of the log is.
func (l *Log) superseded() bool { return l.size >= minCompact && l.size >= 2*l.store.Bytes() }

// rewrite makes a log at path of what the store holds and goes on in it. Batches
// may be appended to the old one meanwhile: the new one gets them before it
// takes the old one's place.
func (l *Log) rewrite(path string, away bool) error {
	l.mu.Lock()
	source, from := l.file, l.size
	meta, entries := l.store.Meta(), l.store.All()
	l.mu.Unlock()

	next, size, err := writeSnapshot(path+suffixNew, l.options.Boot, meta, entries)
	if err == nil && !away {
		err = next.Sync()
	}
	if err == nil {
		err = l.exchange(next, path, size, source, from, away)
	}
	if err != nil {
		if next != nil {
			next.Close() //nolint:errcheck // the first error is told
		}
		os.Remove(path + suffixNew) //nolint:errcheck // takes room that may be what is missing
		return fmt.Errorf("rewrite state log: %w", err)
	}
	if away {
		return nil
	}
	if err := files.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return nil
}

// exchange adds to next what was appended to source since from, and puts it in
// its place.
func (l *Log) exchange(next *os.File, path string, size int64, source *os.File, from int64, away bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != source || l.size < from {
		return errors.New("the log moved meanwhile")
	}
	tail := l.size - from
	if tail > 0 {
		if _, err := io.Copy(next, io.NewSectionReader(source, from, tail)); err != nil {
			return err
		}
	}
	if err := os.Rename(path+suffixNew, path); err != nil {
		return err
	}
	if l.away && !away {
		// From here on the one in the directory is the newest, so the other must
		// go before the next batch comes. Should it stay, go on in it; somebody else
		// may have removed it.
		if err := os.Remove(l.options.Fallback); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove log in memory: %w", err)
		}
	}
	l.become(next, size+tail, away)
	l.dirty = tail > 0
	if !away {
		l.fault = nil
	}
	return nil
}

// writeSnapshot writes a log of entries to a new file. The file is returned with
// an error too, if it is open.
func writeSnapshot(path, boot string, meta held.Meta, entries []held.Named) (*os.File, int64, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, 0, err
	}
	buffer := appendRecord([]byte(magic), func(dst []byte) []byte { return appendBoot(dst, boot) })
	batch := held.NewBatch()
	batch.Meta = meta
	var size int64
	flush := func() error {
		buffer = appendRecord(buffer, func(dst []byte) []byte { return appendBatch(dst, batch) })
		n, err := file.Write(buffer)
		size += int64(n)
		buffer = buffer[:0]
		clear(batch.Upserts)
		return err
	}
	length := 0
	for _, e := range entries {
		batch.Upsert(e.Name, e.Entry)
		if length += len(e.Entry.Data); length >= snapshotRecord {
			if err := flush(); err != nil {
				return file, size, err
			}
			length = 0
		}
	}
	return file, size, flush()
}

// sync waits until everything appended is on the disk. If that fails nobody
// knows what is: the kernel tells once and forgets.
func (l *Log) sync() error {
	l.mu.Lock()
	file, dirty, away := l.file, l.dirty, l.away
	l.dirty = false
	l.mu.Unlock()
	if !dirty || away {
		return nil
	}
	// Without the lock: an append must not wait for the disk. Whoever replaces
	// the file meanwhile runs in this goroutine, or leaves a disk that fails.
	err := unix.Fdatasync(int(file.Fd()))
	if err == nil || errors.Is(err, unix.EBADF) {
		return nil
	}
	err = fmt.Errorf("sync state log: %w", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != file {
		return err
	}
	l.fault = err
	return errors.Join(err, l.leave())
}
