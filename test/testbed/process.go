// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Process is a program that runs, for instance on a host of the cluster. Its
// output goes to a file, and more than one can wait for its end.
type Process struct {
	// Name of the process, unique in the cluster while it runs.
	Name string
	// Args are the program and its arguments.
	Args []string
	// LogPath is the file with standard output and standard error.
	LogPath string

	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// placement tells where a program runs.
type placement struct {
	netns  string
	cgroup string
}

// start runs the command inside the placement's namespace and cgroup. The
// child is in its own session: an interrupt at the terminal is for the
// builder of the cluster, who then stops everything in order.
func (p placement) start(cmd *exec.Cmd) error {
	cgroup, err := os.Open(p.cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer cgroup.Close()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cgroup.Fd())}
	if cmd.Env == nil {
		// Go programs listen with MPTCP unless told otherwise, which hides
		// the sockets from socket-level BPF programs.
		cmd.Env = append(os.Environ(), "GODEBUG=multipathtcp=0")
	}
	return InNetNS(p.netns, cmd.Start)
}

// spawn starts a program with its output appended to logDir/name.log.
func (p placement) spawn(logDir, name string, args []string) (*Process, error) {
	return Spawn(logDir, name, args, p.start)
}

// Spawn starts a program by calling start, with its output appended to
// logDir/name.log.
func Spawn(logDir, name string, args []string, start func(*exec.Cmd) error) (*Process, error) {
	process := &Process{
		Name: name, Args: args, LogPath: filepath.Join(logDir, name+".log"),
		done: make(chan struct{}),
	}
	log, err := os.OpenFile(process.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	process.cmd = exec.Command(args[0], args[1:]...)
	process.cmd.Stdout, process.cmd.Stderr = log, log
	if err := start(process.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		process.err = process.cmd.Wait()
		close(process.done)
	}()
	return process, nil
}

// run runs a program to its end and returns its standard output.
func (p placement) run(args []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is the reason of the process's end, nil while it runs and if it exited
// with status 0.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Running tells whether the process has not ended, with the reason and the
// end of its log if it has.
func (p *Process) Running() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%v); its log ends with:\n%s", p.Name, p.cmd.ProcessState, p.LogTail(20))
	default:
		return nil
	}
}

// Signal sends a signal.
func (p *Process) Signal(signal os.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Stop asks the process to end, waits, and kills it after ten seconds.
func (p *Process) Stop() error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(fmt.Errorf("%s did not end on SIGTERM within 10 s", p.Name), p.Kill())
	}
}

// Kill ends the process without warning and returns when it is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// LogTail returns the last lines of the process's log.
func (p *Process) LogTail(lines int) string { return Tail(p.LogPath, lines) }

// Tail returns the last lines of a file, for error messages.
func Tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
