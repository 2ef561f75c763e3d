// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/cluster/cgroups"
)

// InitCommand is the first argument that makes the calling program call Init
// with the second.
const InitCommand = "node-init"

// Run is the node's process on the machine: it joins the node's cgroups and
// network namespace, starts the node's first process in namespaces of its own,
// and waits. When it ends, so does everything on the node.
func Run(specPath string) error {
	spec, err := Read(specPath)
	if err != nil {
		return err
	}
	if err := Join(spec.Cgroup, spec.NetNS); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", InitCommand, specPath)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Without this process nobody would wait for the node's. The signal
		// comes when the thread ends, which Join has locked to this goroutine.
		Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
			unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
	}
	err = cmd.Run()
	if exit := (&exec.ExitError{}); errors.As(err, &exit) {
		return fmt.Errorf("node %s ended: %w", spec.Name, err)
	}
	return err
}

// Join takes the process into the cgroup, below the root of every hierarchy,
// and the calling goroutine's thread, which stays locked, into the network
// namespace; either may be empty. Programs that the goroutine starts or becomes
// are in both.
func Join(cgroup, netns string) error {
	if cgroup != "" {
		if err := cgroups.Join(cgroup); err != nil {
			return err
		}
	}
	if netns == "" {
		return nil
	}
	runtime.LockOSThread()
	file, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("opening a network namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering network namespace %s: %w", netns, err)
	}
	return nil
}
