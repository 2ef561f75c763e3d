// SPDX-License-Identifier: Apache-2.0

// Package syscalls runs an unmodified program so that a test decides about each
// of its system calls that changes something: let it be, answer it with an
// error instead of executing it, or kill the whole process right before it.
//
// It works by seccomp user notifications. The calls that the filter picks stop
// in the kernel until the supervisor answers; a process that is killed there
// never executes the call. Killing before the n-th call is killing after the one
// before it, so all n together are all instants that a restart can tell apart.
//
// What is counted:
//   - bpf(2) with a command that changes something: creating, updating, deleting
//     from and freezing maps, loading and attaching programs, creating, updating
//     and detaching links, pinning. Lookups change nothing and run free; the
//     filter tells them apart by the command, which is an immediate argument.
//   - write, pwrite64 and writev to regular files (sysctls included), ftruncate,
//     fsync, fdatasync, mkdir, unlink, rename, link, symlink, and opening with
//     O_CREAT or O_TRUNC.
//   - requests to change something by rtnetlink (qdiscs and filters among them).
//
// What is written to sockets, pipes, event counters and to standard error is
// passed through and not counted.
package syscalls
