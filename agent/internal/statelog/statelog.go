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
// runs in the background (Sync, once a second while there is news) and before
// a compacted log takes the old one's place. Waiting for the disk on every batch
// would cost 1 to 20 ms of programming latency and gain nothing.
package statelog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/held"
)

const (
	fileName = "state.log"
	// minCompact is the size below which a log is not worth compacting.
	minCompact = 1 << 20
	// snapshotRecord is about how long the records of a compacted log are.
	snapshotRecord = 256 << 10
)

// Recovery tells what opening a log found.
type Recovery struct {
	// Records is how many were replayed.
	Records int
	// PreviousBoot is the boot_id that wrote the log last, empty if the log is
	// new.
	PreviousBoot string
	// SameBoot tells that the kernel still runs that wrote the log last: what
	// is pinned may be of this log.
	SameBoot bool
	// TruncatedBytes were cut off because of what Damage says; 0 if none.
	TruncatedBytes int64
	// Damage tells why bytes were cut off.
	Damage string
}

// Log is an open log. It is safe for concurrent use.
type Log struct {
	mu    sync.Mutex
	dir   string
	boot  string
	file  *os.File
	lock  *os.File
	size  int64
	dirty bool
	// broken is set while a failed append could not be undone: appending after
	// it would put good records behind a bad one, where no replay finds them.
	broken error
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

// Open opens the log in dir, makes both if there are none, and replays it into
// store. A damaged log is cut off before the first bad record, and Recovery
// says so.
func Open(dir, boot string, store *held.Store) (*Log, Recovery, error) {
	var recovery Recovery
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, recovery, fmt.Errorf("make state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, recovery, fmt.Errorf("open lock of state directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close() //nolint:errcheck // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, recovery, fmt.Errorf("%s: %w", dir, ErrLocked)
		}
		return nil, recovery, fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	l := &Log{dir: dir, boot: boot, lock: lock}
	if err := l.recover(store, &recovery); err != nil {
		l.close() //nolint:errcheck // the first error is told
		return nil, recovery, err
	}
	return l, recovery, nil
}

func (l *Log) path() string { return filepath.Join(l.dir, fileName) }

func (l *Log) recover(store *held.Store, recovery *Recovery) error {
	// A compaction that did not come to its rename left this behind.
	if err := os.Remove(l.path() + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove unfinished compaction: %w", err)
	}
	file, err := os.OpenFile(l.path(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open state log: %w", err)
	}
	l.file = file
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("stat state log: %w", err)
	}
	good, err := replay(file, store, recovery)
	if err != nil {
		return fmt.Errorf("read state log: %w", err)
	}
	if recovery.Damage != "" {
		recovery.TruncatedBytes = info.Size() - good
		if err := file.Truncate(good); err != nil {
			return fmt.Errorf("cut off damaged end of state log: %w", err)
		}
	}
	if _, err := file.Seek(good, io.SeekStart); err != nil {
		return fmt.Errorf("seek in state log: %w", err)
	}
	l.size = good
	if good == 0 {
		if err := l.write([]byte(magic)); err != nil {
			return err
		}
	}
	recovery.SameBoot = recovery.PreviousBoot == l.boot
	if recovery.SameBoot {
		return nil
	}
	return l.write(appendRecord(nil, func(dst []byte) []byte { return appendBoot(dst, l.boot) }))
}

// replay applies every good record and returns where the first bad one starts.
func replay(file io.Reader, store *held.Store, recovery *Recovery) (int64, error) {
	r := bufio.NewReaderSize(file, 256<<10)
	head := make([]byte, len(magic))
	switch n, err := io.ReadFull(r, head); {
	case errors.Is(err, io.EOF):
		return 0, nil
	case errors.Is(err, io.ErrUnexpectedEOF) || err == nil && string(head) != magic:
		recovery.Damage = fmt.Sprintf("no log of this format (starts with %q)", head[:n])
		return 0, nil
	case err != nil:
		return 0, err
	}
	good := int64(len(magic))
	var buffer []byte
	for {
		payload, err := readRecord(r, buffer)
		if err == nil {
			err = replayRecord(payload, store, recovery)
		}
		switch {
		case errors.Is(err, io.EOF):
			return good, nil
		case errors.Is(err, errCorrupt):
			recovery.Damage = fmt.Sprintf("offset %d: %v", good, err)
			return good, nil
		case err != nil:
			return good, err
		}
		good += int64(headerSize + len(payload))
		buffer = payload
		recovery.Records++
	}
}

func replayRecord(payload []byte, store *held.Store, recovery *Recovery) error {
	switch payload[0] {
	case kindBoot:
		d := &decoder{data: payload[1:]}
		boot := string(d.bytes())
		if d.failed {
			return fmt.Errorf("%w: boot does not parse", errCorrupt)
		}
		recovery.PreviousBoot = boot
	case kindBatch:
		batch, err := decodeBatch(payload[1:])
		if err != nil {
			return err
		}
		store.Apply(batch)
	default:
		return fmt.Errorf("%w: kind %d", errCorrupt, payload[0])
	}
	return nil
}

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

// Append writes a batch. When it returns without an error the batch survives
// the process.
func (l *Log) Append(batch *held.Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(appendRecord(nil, func(dst []byte) []byte { return appendBatch(dst, batch) }))
}

// Sync waits until everything appended is on the disk.
func (l *Log) Sync() error {
	l.mu.Lock()
	file, dirty := l.file, l.dirty
	l.dirty = false
	l.mu.Unlock()
	if !dirty {
		return nil
	}
	// Without the lock: an append must not wait for the disk. A compaction that
	// closes the file meanwhile has synced all of it.
	if err := unix.Fdatasync(int(file.Fd())); err != nil && !errors.Is(err, unix.EBADF) {
		return fmt.Errorf("sync state log: %w", err)
	}
	return nil
}

// Size returns the length of the log in bytes.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// MaybeCompact rewrites the log if more than half of it is superseded.
func (l *Log) MaybeCompact(store *held.Store) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size < minCompact || l.size < 2*store.Bytes() {
		return false, nil
	}
	return true, l.compact(store)
}

// Compact rewrites the log to hold nothing but what store holds.
func (l *Log) Compact(store *held.Store) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.compact(store)
}

func (l *Log) compact(store *held.Store) error {
	next, err := os.OpenFile(l.path()+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("compact state log: %w", err)
	}
	size, err := writeSnapshot(next, l.boot, store)
	if err == nil {
		err = next.Sync()
	}
	if err == nil {
		err = os.Rename(l.path()+".new", l.path())
	}
	if err != nil {
		next.Close() //nolint:errcheck // the first error is told
		return fmt.Errorf("compact state log: %w", err)
	}
	l.file.Close() //nolint:errcheck // superseded, its name is gone
	l.file, l.size, l.dirty, l.broken = next, size, false, nil
	return syncDirectory(l.dir)
}

func writeSnapshot(file *os.File, boot string, store *held.Store) (int64, error) {
	buffer := appendRecord([]byte(magic), func(dst []byte) []byte { return appendBoot(dst, boot) })
	batch := held.NewBatch()
	batch.Meta = store.Meta()
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
	for _, name := range store.Names() {
		entry, ok := store.Entry(name)
		if !ok {
			continue
		}
		batch.Upsert(name, entry)
		if length += len(entry.Data); length >= snapshotRecord {
			if err := flush(); err != nil {
				return size, err
			}
			length = 0
		}
	}
	return size, flush()
}

func syncDirectory(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open state directory: %w", err)
	}
	defer dir.Close() //nolint:errcheck // read only
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync state directory: %w", err)
	}
	return nil
}

// Close syncs and closes the log.
func (l *Log) Close() error {
	err := l.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(err, l.close())
}

func (l *Log) close() error {
	var errs []error
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	errs = append(errs, l.lock.Close())
	return errors.Join(errs...)
}
