// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNetNS is the network namespace of the calling thread. (/proc/self
// would be that of the process's first thread.)
const threadNetNS = "/proc/thread-self/ns/net"

// inNewThreadNS runs fn on a locked thread. enter changes the thread's
// network namespace; it is restored afterwards. If that fails the thread is
// not unlocked, so that the runtime ends it with the goroutine.
func inNewThreadNS(enter func() error, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		origin, err := os.Open(threadNetNS)
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open own network namespace: %w", err)
			return
		}
		defer origin.Close()
		if err := enter(); err != nil {
			result <- err
			return
		}
		err = fn()
		if back := unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET); back != nil {
			result <- errors.Join(err, fmt.Errorf("return to own network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// createNetNS makes a network namespace and keeps it alive by a bind mount
// at path, where nsenter --net= finds it.
func createNetNS(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create mount point of namespace: %w", err)
	}
	file.Close()
	return inNewThreadNS(
		func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare network namespace: %w", err)
			}
			return nil
		},
		func() error {
			if err := unix.Mount(threadNetNS, path, "none", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind network namespace to %s: %w", path, err)
			}
			return nil
		})
}

// InNetNS runs fn on a thread inside the network namespace at path. What fn
// starts or opens belongs to that namespace and stays there; goroutines that fn
// starts run outside of it.
func InNetNS(path string, fn func() error) error {
	return inNewThreadNS(
		func() error {
			ns, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("open network namespace: %w", err)
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter network namespace %s: %w", path, err)
			}
			return nil
		}, fn)
}

// removeNetNS undoes createNetNS. The namespace goes when the last process
// in it does.
func removeNetNS(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return os.Remove(path)
}
