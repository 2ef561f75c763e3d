// SPDX-License-Identifier: Apache-2.0

package syscalls

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Verdict is what becomes of a call.
type Verdict struct {
	errno unix.Errno
	kill  bool
}

// Continue lets the kernel execute the call.
var Continue = Verdict{}

// Kill kills the whole process; the call is never executed.
var Kill = Verdict{kill: true}

// Fail answers the call with an error; it is not executed.
func Fail(errno unix.Errno) Verdict { return Verdict{errno: errno} }

// Rule decides about counted calls. It runs while the caller waits in the
// kernel; calls of several threads come one after another.
type Rule func(*Call) Verdict

// Supervisor decides about the calls of the programs that its Command starts,
// one process at a time or several.
type Supervisor struct {
	socket string
	listen int

	mu     sync.Mutex
	always Rule
	rule   Rule
	ignore func(*Call) bool
	count  int
	killed *Call
	err    error
}

// New returns a supervisor whose socket is in dir.
func New(dir string) (*Supervisor, error) {
	s := &Supervisor{socket: filepath.Join(dir, "supervisor.sock")}
	var err error
	if s.listen, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("supervisor's socket: %w", err)
	}
	if err := unix.Bind(s.listen, &unix.SockaddrUnix{Name: s.socket}); err != nil {
		unix.Close(s.listen)
		return nil, fmt.Errorf("bind %s: %w", s.socket, err)
	}
	if err := unix.Listen(s.listen, 16); err != nil {
		unix.Close(s.listen)
		return nil, fmt.Errorf("listen on %s: %w", s.socket, err)
	}
	go s.accept()
	return s, nil
}

// Close ends taking on new processes.
func (s *Supervisor) Close() error {
	if err := unix.Shutdown(s.listen, unix.SHUT_RDWR); err != nil {
		return err
	}
	return os.Remove(s.socket)
}

// Command is the beginning of a command line that runs the rest of it under the
// supervisor; the test's own binary must call Launch.
func (s *Supervisor) Command() ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, launchCommand, s.socket}, nil
}

// Set sets the rule, nil for none, and counts from zero again. It returns the
// call before which the earlier rule killed the process, or nil: a call that comes
// by itself may have done that at the last moment.
func (s *Supervisor) Set(rule Rule) *Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	killed := s.killed
	s.rule, s.count, s.killed = rule, 0, nil
	return killed
}

// Ignore lets calls pass that are not to be counted, nil for none. It is for what
// comes at any time: with it among them, no number would stand for a certain call.
func (s *Supervisor) Ignore(calls func(*Call) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ignore = calls
}

// Always sets a rule that comes before all others, nil for none: what it does not
// let be is not for them to decide. It makes a kernel look as if it had less.
func (s *Supervisor) Always(rule Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always = rule
}

// KillBefore sets the rule that kills the process before its n-th counted call
// from now.
func (s *Supervisor) KillBefore(n int) {
	s.Set(func(c *Call) Verdict {
		if c.Number >= n {
			return Kill
		}
		return Continue
	})
}

// KillAfter sets the rule that kills the process before the n-th counted call from
// the first that begin accepts, which is the first of them.
func (s *Supervisor) KillAfter(begin func(*Call) bool, n int) {
	first := 0
	s.Set(func(c *Call) Verdict {
		if first == 0 && begin(c) {
			first = c.Number
		}
		if first != 0 && c.Number >= first+n-1 {
			return Kill
		}
		return Continue
	})
}

// Count returns the number of counted calls since Set.
func (s *Supervisor) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Killed returns the call before which the process was killed since Set, or nil.
func (s *Supervisor) Killed() *Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.killed
}

// Err returns what went wrong in the supervisor itself.
func (s *Supervisor) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Supervisor) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
}

func (s *Supervisor) accept() {
	defer unix.Close(s.listen)
	for {
		conn, _, err := unix.Accept4(s.listen, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // closed
		}
		if err := s.take(conn); err != nil {
			s.fail(err)
		}
		unix.Close(conn)
	}
}

// take receives a listener and starts serving it.
func (s *Supervisor) take(conn int) error {
	peer, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("who launches: %w", err)
	}
	data, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, controls, _, _, err := unix.Recvmsg(conn, data, control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("listener of process %d: %w", peer.Pid, err)
	}
	if n == 0 {
		return nil // ended before it was the program, as when a test kills it at once
	}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("listener of process %d: %d messages, %v", peer.Pid, len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("listener of process %d: %d, %v", peer.Pid, len(fds), err)
	}
	// The launcher becomes the program by exec, so the id is the program's.
	pidfd, err := unix.PidfdOpen(int(peer.Pid), 0)
	if err != nil {
		unix.Close(fds[0])
		return fmt.Errorf("process %d: %w", peer.Pid, err)
	}
	go s.serve(&process{pid: int(peer.Pid), pidfd: pidfd, listener: fds[0]})
	return nil
}

// process is a supervised process.
type process struct {
	pid, pidfd, listener int
	dead                 bool
}

// notification and response are struct seccomp_notif and seccomp_notif_resp.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

const (
	notifyReceive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	notifySend    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	notifyValid   = 0x40082102 // SECCOMP_IOCTL_NOTIF_ID_VALID
)

func ioctl(fd int, request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}

// serve answers a process's notifications until it ends.
func (s *Supervisor) serve(p *process) {
	defer unix.Close(p.pidfd)
	defer unix.Close(p.listener)
	for {
		poll := []unix.PollFd{{Fd: int32(p.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			s.fail(fmt.Errorf("poll: %w", err))
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return // the last of its threads is gone
		}
		var n notification
		switch errno := ioctl(p.listener, notifyReceive, unsafe.Pointer(&n)); errno {
		case 0:
		case unix.ENOENT, unix.EINTR:
			continue // the call was given up meanwhile
		default:
			s.fail(fmt.Errorf("receive notification: %w", errno))
			return
		}
		s.decide(p, &n)
	}
}

// decide answers one notification.
func (s *Supervisor) decide(p *process, n *notification) {
	if p.dead {
		return // nothing is executed any more
	}
	verdict := Continue
	if call := p.describe(n); call != nil {
		// What was read is the caller's only if it still waits.
		if ioctl(p.listener, notifyValid, unsafe.Pointer(&n.id)) != 0 {
			return
		}
		s.mu.Lock()
		ignored := s.ignore != nil && s.ignore(call)
		if !ignored {
			s.count++
			call.Number = s.count
		}
		if s.always != nil {
			verdict = s.always(call)
		}
		if s.rule != nil && verdict == Continue && !ignored {
			verdict = s.rule(call)
		}
		if verdict.kill && s.killed == nil {
			s.killed = call
		}
		s.mu.Unlock()
	}
	if verdict.kill {
		p.dead = true
		if err := unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			s.fail(fmt.Errorf("kill process %d: %w", p.pid, err))
		}
		return
	}
	r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if verdict.errno != 0 {
		r.flags, r.error = 0, -int32(verdict.errno)
	}
	if errno := ioctl(p.listener, notifySend, unsafe.Pointer(&r)); errno != 0 && errno != unix.ENOENT {
		s.fail(fmt.Errorf("answer notification: %w", errno))
	}
}
