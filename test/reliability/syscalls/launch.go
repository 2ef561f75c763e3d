// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// launchCommand, as first argument, makes a test's binary the launcher.
const launchCommand = "launch-under-seccomp"

// Launch becomes the program of the command line if the process was started as
// a launcher, and returns at once otherwise. TestMain calls it first.
func Launch() {
	if len(os.Args) < 4 || os.Args[1] != launchCommand {
		return
	}
	if err := launch(os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "launch:", err)
		os.Exit(1)
	}
}

// launch installs the filter, hands its listener to the supervisor at socket,
// and executes the program.
func launch(socket string, args []string) error {
	// The filter is the thread's, and so is the exec.
	runtime.LockOSThread()
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if err := unix.Connect(conn, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("connect to supervisor: %w", err)
	}
	listener, err := install()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(conn, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand over listener: %w", err)
	}
	if err := unix.Exec(args[0], args, os.Environ()); err != nil {
		return fmt.Errorf("execute %s: %w", args[0], err)
	}
	return nil
}
