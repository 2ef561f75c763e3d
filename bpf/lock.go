// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is wrapped by the error of [LockPins] when somebody else has the lock.
var ErrLocked = errors.New("another agent uses it")

// lockPatience is how long LockPins waits: a killed agent takes a moment to end.
const lockPatience = 2 * time.Second

// Lock is the right to change what is pinned under a path. The kernel takes it
// back when the process ends.
type Lock struct {
	path string

	mu  sync.Mutex
	dir *os.File
}

// LockPins takes the lock of a pin path, which must be there unless create is
// set. The lock is on the directory itself, so it is the same in every mount
// namespace.
func LockPins(path string, create bool) (*Lock, error) {
	if create {
		if err := makePinDirs(path); err != nil {
			return nil, err
		}
	}
	l := &Lock{path: path}
	for end := time.Now().Add(lockPatience); ; time.Sleep(50 * time.Millisecond) {
		err := l.renew()
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, ErrLocked) || time.Now().After(end) {
			return nil, err
		}
	}
}

// renew takes the lock of the directory that is at the path now, if it is not
// the one that is locked.
func (l *Lock) renew() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir != nil && l.current(l.dir) {
		return nil
	}
	dir, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("lock pin path: %w", err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		dir.Close()
		return fmt.Errorf("pin path %s: %w", l.path, ErrLocked)
	case err != nil:
		dir.Close()
		return fmt.Errorf("lock pin path %s: %w", l.path, err)
	case !l.current(dir):
		// Its holder removed it in between.
		dir.Close()
		return fmt.Errorf("pin path %s was removed just now: %w", l.path, ErrLocked)
	}
	if l.dir != nil {
		l.dir.Close()
	}
	l.dir = dir
	return nil
}

// current tells whether the directory is the one at the path.
func (l *Lock) current(dir *os.File) bool {
	have, err := dir.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(l.path)
	return err == nil && os.SameFile(have, there)
}

// Close gives the lock back.
func (l *Lock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dir.Close()
}
