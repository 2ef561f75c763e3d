// SPDX-License-Identifier: Apache-2.0

// Package statelog keeps what the node holds on disk: an append-only log of
// batches, each with a checksum, that is compacted into a snapshot when most of
// it is superseded. A batch is appended before anything of it reaches the
// kernel, so that after a crash at any instant the log explains everything the
// kernel may hold.
//
// Durability. Append makes one write call and does not wait for the disk. When
// the process dies the page cache has the record; when the machine dies the
// kernel's maps are gone as well, and an older log is merely an older cache,
// which the calculator completes by its digests. What must not happen is a log
// that reads as something it never was, and checksums see to that. So fsync
// runs in the background (once a second while there is news) and before a
// rewritten log takes the old one's place. Waiting for the disk on every batch
// would cost 1 to 20 ms of programming latency and gain nothing.
//
// A disk that fails. What has to survive the process need not survive the
// machine, so memory serves as well: when the state directory cannot be written,
// or fsync fails, the log goes on in the fallback, a file on a filesystem in
// memory. It is a whole log, it is the newer one wherever it is found, and a
// reboot erases it together with the kernel's maps. Once the directory can be
// written, the log is rewritten there and the fallback removed. Only when
// neither can be written is a batch refused.
package statelog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/millrace-project/millrace/agent/internal/held"
)

const (
	fileName = "state.log"
	// lockName is of the file in the state directory that its user locks.
	lockName = "lock"
	// suffixNew is that of a file that is being written in place of another.
	suffixNew = ".new"
	// minCompact is the size below which a log is not worth compacting.
	minCompact = 1 << 20
	// snapshotRecord is about how long the records of a compacted log are.
	snapshotRecord = 256 << 10
)

// Options tell where a log is kept.
type Options struct {
	// Dir is the state directory.
	Dir string
	// Fallback is the file that the log goes on in while Dir cannot be written,
	// in memory: it must not survive a reboot. Empty: none.
	Fallback string
	// Boot identifies the kernel's boot.
	Boot string
}

// Log is an open log. It is safe for concurrent use.
type Log struct {
	options Options
	store   *held.Store
	lock    *os.File // of the directory; nil where that cannot be had
	due     chan struct{}

	mu   sync.Mutex
	file *os.File // what is appended to; nil if nothing can be
	size int64
	// away tells that file is the fallback.
	away  bool
	dirty bool
	// fault is why the log is not, or not safely, in the directory.
	fault error
	// broken is set while a failed append could not be undone: appending after
	// it would put good records behind a bad one, where no replay finds them.
	broken error

	// Of Maintain alone.
	nextTry time.Time
	backoff time.Duration
}

// ErrLocked says that another process has the log open.
var ErrLocked = errors.New("the state directory is in use by another process")

// BootID returns the identity of the running kernel's boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (l *Log) path() string { return filepath.Join(l.options.Dir, fileName) }

// write appends b in one call and undoes it if it fails half way.
func (l *Log) write(b []byte) error {
	if l.broken != nil {
		if l.undo() != nil {
			return l.broken
		}
		l.broken = nil
	}
	n, err := l.file.Write(b)
	if err != nil {
		err = fmt.Errorf("append to state log: %w", err)
		if n > 0 {
			if undo := l.undo(); undo != nil {
				l.broken = fmt.Errorf("%w; and it could not be undone: %w", err, undo)
				return l.broken
			}
		}
		return err
	}
	l.size += int64(n)
	l.dirty = true
	return nil
}

// undo cuts off what a failed write left behind the last whole record.
func (l *Log) undo() error {
	if err := l.file.Truncate(l.size); err != nil {
		return err
	}
	_, err := l.file.Seek(l.size, io.SeekStart)
	return err
}

// Append writes a batch and lets it take effect in the store. When it returns
// without an error the batch survives the process.
func (l *Log) Append(batch *held.Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.append(appendRecord(nil, func(dst []byte) []byte { return appendBatch(dst, batch) })); err != nil {
		return err
	}
	// With the lock: a snapshot of the store holds exactly what is in the log up
	// to some length.
	l.store.Apply(batch)
	if l.superseded() {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
	return nil
}

// append writes a record to the log, wherever it can be written.
func (l *Log) append(record []byte) error {
	err := l.fault
	if l.file != nil {
		if err = l.write(record); err == nil {
			return nil
		}
	}
	if l.away {
		return errors.Join(l.fault, err)
	}
	l.fault = err
	if failed := l.leave(); failed != nil {
		return errors.Join(err, failed)
	}
	return l.write(record)
}

// leave goes on in the fallback, which begins with everything that is held.
func (l *Log) leave() error {
	path := l.options.Fallback
	if path == "" {
		return errors.New("there is no place in memory to go on in")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory in memory: %w", err)
	}
	next, size, err := writeSnapshot(path+suffixNew, l.options.Boot, l.store.Meta(), l.store.All())
	if err == nil {
		err = os.Rename(path+suffixNew, path)
	}
	if err != nil {
		if next != nil {
			next.Close() //nolint:errcheck // the first error is told
		}
		return fmt.Errorf("go on in memory: %w", err)
	}
	l.become(next, size, true)
	return nil
}

// become makes a file the one that is appended to.
func (l *Log) become(file *os.File, size int64, away bool) {
	if l.file != nil {
		l.file.Close() //nolint:errcheck // superseded
	}
	l.file, l.size, l.away, l.dirty, l.broken = file, size, away, false, nil
}

// Fault tells what is wrong with the place of the log, empty if nothing is.
func (l *Log) Fault() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.fault == nil:
		return ""
	case l.away:
		return fmt.Sprintf("the state log cannot be kept in %s (%v); it goes on in %s, which a reboot erases",
			l.options.Dir, l.fault, l.options.Fallback)
	case l.file != nil:
		return fmt.Sprintf("the state log in %s may not be on the disk (%v)", l.options.Dir, l.fault)
	}
	return fmt.Sprintf("the state log can be kept nowhere (%v)", l.fault)
}

// Away tells that the log is in memory for now.
func (l *Log) Away() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.away
}

// Size returns the length of the log in bytes.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Close syncs and closes the log.
func (l *Log) Close() error {
	err := l.sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(err, l.close())
}

func (l *Log) close() error {
	var errs []error
	if l.file != nil {
		errs = append(errs, l.file.Close())
		l.file = nil
	}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}
