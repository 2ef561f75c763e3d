// SPDX-License-Identifier: Apache-2.0

package statelog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/agent/internal/held"
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
	// Discarded tells that nothing of a damaged log was taken, because the kernel
	// holds newer state than what was left of it.
	Discarded bool
	// torn tells that the damage is a last record that was not written in whole.
	torn bool
}

// Open opens the log in a directory, makes both if there are none, and replays
// it into store. A damaged log is cut off before the first bad record, and
// Recovery says so. A directory that cannot be read or written is no error, see
// Fault; one that another process uses is.
func Open(options Options, store *held.Store) (*Log, Recovery, error) {
	l := &Log{options: options, store: store, due: make(chan struct{}, 1)}
	if err := l.lockDir(); errors.Is(err, ErrLocked) {
		return nil, Recovery{}, err
	} else if err != nil {
		l.fault = err
	}
	recovery, found := l.openFallback()
	if !found {
		recovery = l.openHome()
	}
	if l.fault != nil && !l.away {
		// Before anything is appended, so that what is wrong is known at once.
		if err := l.leave(); err != nil {
			l.fault = errors.Join(l.fault, err)
		}
	}
	return l, recovery, nil
}

// lockDir makes and locks the directory.
func (l *Log) lockDir() error {
	dir := l.options.Dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		if lock, err = os.Open(filepath.Join(dir, lockName)); err != nil {
			return fmt.Errorf("open lock of state directory: %w", err)
		}
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close() //nolint:errcheck // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%s: %w", dir, ErrLocked)
		}
		return fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	l.lock = lock
	return nil
}

// openFallback opens the log that an earlier life went on with in memory. If it
// is of this boot it is newer than the one in the directory.
func (l *Log) openFallback() (recovery Recovery, found bool) {
	path := l.options.Fallback
	if path == "" {
		return recovery, false
	}
	os.Remove(path + suffixNew) //nolint:errcheck // usually there is none
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return recovery, false
	}
	boot, err := firstBoot(file)
	if err == nil && boot != l.options.Boot {
		file.Close()    //nolint:errcheck // nothing was written
		os.Remove(path) //nolint:errcheck // of no use to anybody
		return recovery, false
	}
	if err != nil {
		// A reboot empties the place, and a log is whole when it gets there: it is
		// of this boot, damaged since. The one at home is older than the kernel; how
		// far that had come is what is left to know.
		l.replayHome()
	}
	l.file, l.away = file, true
	if err := l.take(&recovery); err != nil {
		l.fault = errors.Join(l.fault, err)
	}
	if l.fault == nil {
		l.fault = errors.New("it could not be written before")
	}
	return recovery, true
}

// firstBoot reads the boot that a log begins with.
func firstBoot(file *os.File) (string, error) {
	var recovery Recovery
	first := io.NewSectionReader(file, 0, 1<<20)
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(first, head); err != nil || string(head) != magic {
		return "", errCorrupt
	}
	payload, err := readRecord(first, nil)
	if err == nil {
		err = replayRecord(payload, held.New(), &recovery)
	}
	if err == nil && recovery.PreviousBoot == "" {
		err = fmt.Errorf("%w: it does not begin with a boot", errCorrupt)
	}
	return recovery.PreviousBoot, err
}

// replayHome replays what can be read of the log in the directory.
func (l *Log) replayHome() {
	file, err := os.Open(l.path())
	if err != nil {
		return
	}
	defer file.Close()                          //nolint:errcheck // read only
	_, _ = replay(file, l.store, new(Recovery)) // as far as it goes
}

// openHome opens the log in the directory and readies it for appending; what
// fails becomes the fault.
func (l *Log) openHome() (recovery Recovery) {
	fail := func(err error) { l.fault = errors.Join(l.fault, err) }
	// A rewriting that did not come to its rename left this behind.
	if err := os.Remove(l.path() + suffixNew); err != nil && !errors.Is(err, os.ErrNotExist) {
		fail(fmt.Errorf("remove unfinished rewriting: %w", err))
	}
	file, err := os.OpenFile(l.path(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		fail(fmt.Errorf("open state log: %w", err))
		if file, err = os.Open(l.path()); err != nil {
			return recovery
		}
	}
	l.file = file
	if err := l.take(&recovery); err != nil {
		fail(err)
	}
	if l.fault != nil {
		// Not to be appended to: it is rewritten when that is possible.
		l.file.Close() //nolint:errcheck // was read only
		l.file, l.size = nil, 0
	}
	return recovery
}

// take replays the open file into the store and readies it for appending.
func (l *Log) take(recovery *Recovery) error {
	info, err := l.file.Stat()
	if err != nil {
		return fmt.Errorf("stat state log: %w", err)
	}
	good, err := replay(l.file, l.store, recovery)
	recovery.SameBoot = recovery.PreviousBoot == l.options.Boot
	if l.away && recovery.Records == 0 {
		recovery.SameBoot, recovery.torn = true, false
		if recovery.Damage == "" {
			recovery.Damage = "it is empty"
		}
	}
	if err != nil {
		// Half of it, and the kernel may hold what the other half says.
		recovery.Damage, recovery.Discarded = err.Error(), recovery.SameBoot
	} else if recovery.Damage != "" && recovery.SameBoot {
		if err = l.judge(good, info.Size(), recovery); err != nil {
			recovery.torn = false
		}
		recovery.Discarded = !recovery.torn
	}
	if recovery.Damage != "" {
		recovery.TruncatedBytes = info.Size() - good
	}
	if recovery.Discarded {
		// What the damage hides was in the kernel. To program what is left would
		// take it backwards; what it has stays until calculators have sent all.
		l.forget()
		good, recovery.TruncatedBytes = 0, info.Size()
	}
	if err != nil {
		return fmt.Errorf("read state log: %w", err)
	}
	return l.ready(good, recovery)
}

// judge tells a last record that was not written in whole, of which nothing was
// in the kernel, from other damage that looks alike.
func (l *Log) judge(good, size int64, recovery *Recovery) error {
	if !recovery.torn {
		return nil
	}
	why, err := judgeTail(l.file, good, size)
	if why != "" {
		recovery.Damage, recovery.torn = recovery.Damage+"; but "+why, false
	}
	return err
}

// forget drops what was replayed but for how far it had come: calculators that
// are behind even that are refused.
func (l *Log) forget() {
	nothing := held.NewBatch()
	for _, name := range l.store.Names() {
		nothing.Remove(name)
	}
	nothing.Meta = l.store.Meta()
	nothing.Meta.InSync = false
	l.store.Apply(nothing)
}

// ready cuts the open file off behind its good part and notes this boot.
func (l *Log) ready(good int64, recovery *Recovery) error {
	if recovery.Damage != "" {
		if err := l.file.Truncate(good); err != nil {
			return fmt.Errorf("cut off damaged end of state log: %w", err)
		}
	}
	if _, err := l.file.Seek(good, io.SeekStart); err != nil {
		return fmt.Errorf("seek in state log: %w", err)
	}
	l.size = good
	var head []byte
	if good == 0 {
		head = append(head, magic...)
	}
	if good == 0 || !recovery.SameBoot {
		head = appendRecord(head, func(dst []byte) []byte { return appendBoot(dst, l.options.Boot) })
	}
	if recovery.Discarded {
		position := held.NewBatch()
		position.Meta = l.store.Meta()
		head = appendRecord(head, func(dst []byte) []byte { return appendBatch(dst, position) })
	}
	if len(head) == 0 {
		// Nothing to write, but whether anything can be is to be known now.
		return writable(l.file)
	}
	return l.write(head)
}

// writable tells whether a file's filesystem takes changes.
func writable(file *os.File) error {
	flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("state log: %w", err)
	}
	if flags&unix.O_ACCMODE == unix.O_RDONLY {
		return errors.New("the state log could be opened for reading only")
	}
	return nil
}

// replay applies every good record and returns where the first bad one starts.
func replay(file io.Reader, store *held.Store, recovery *Recovery) (int64, error) {
	r := bufio.NewReaderSize(file, 256<<10)
	head := make([]byte, len(magic))
	switch n, err := io.ReadFull(r, head); {
	case errors.Is(err, io.EOF):
		return 0, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		recovery.Damage, recovery.torn = fmt.Sprintf("it ends within its first word (%q)", head[:n]), true
		return 0, nil
	case err == nil && string(head) != magic && strings.HasPrefix(string(head), family):
		recovery.Damage = fmt.Sprintf("another version of the agent wrote it, in format %q", head)
		return 0, nil
	case err == nil && string(head) != magic:
		recovery.Damage = fmt.Sprintf("it is no state log (starts with %q)", head)
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
			recovery.Damage, recovery.torn = fmt.Sprintf("offset %d: %v", good, err), errors.Is(err, errTorn)
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
		return fmt.Errorf("%w: kind %d is of another version of the agent", errCorrupt, payload[0])
	}
	return nil
}
