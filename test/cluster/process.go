// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/millrace-project/millrace/test/cluster/cgroups"
	"github.com/millrace-project/millrace/test/testbed"
)

// JoinCommand is the first argument that makes millrace-cluster join a cgroup
// and a network namespace ("" for none) and become the program that follows.
const JoinCommand = "join"

// startProcess starts a program that outlives this process, in a cgroup below
// the cluster's and in a network namespace. Its output goes to log/name.log.
func (c *Cluster) startProcess(name, netns string, args ...string) error {
	helper, err := c.helper()
	if err != nil {
		return err
	}
	group := c.cgroup(name)
	if err := cgroups.Make(group); err != nil {
		return err
	}
	log, err := os.OpenFile(c.logFile(name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(helper, append([]string{JoinCommand, group, netns}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	// No terminal's interrupt reaches it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	go cmd.Wait() // so that no zombie stays
	return os.WriteFile(c.path("run", name), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644)
}

func (c *Cluster) logFile(name string) string { return c.path("log", name+".log") }

// pid returns the process of that name, or zero if it does not run.
func (c *Cluster) pid(name string) int {
	data, err := os.ReadFile(c.path("run", name))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		return 0
	}
	// The number may be somebody else's by now.
	members, err := cgroups.Processes(c.cgroup(name))
	if err != nil || !slices.Contains(members, pid) {
		return 0
	}
	return pid
}

// stopProcess ends a process, first politely, and returns when it is gone.
func (c *Cluster) stopProcess(ctx context.Context, name string, patience time.Duration) error {
	if pid := c.pid(name); pid != 0 {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stopping %s: %w", name, err)
		}
		polite, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := wait(polite, name+" to end", func() error {
			if c.pid(name) != 0 {
				return errors.New("it runs")
			}
			return nil
		}); err == nil {
			return nil
		}
	}
	return cgroups.Kill(ctx, c.cgroup(name))
}

// wait waits until the condition holds. The error says what was waited for and
// what was last in the way.
func wait(ctx context.Context, what string, condition func() error) error {
	if err := testbed.Eventually(ctx, condition); err != nil {
		return fmt.Errorf("waiting for %s: %w", what, err)
	}
	return nil
}

// output runs a command and returns what it printed; the error of a failure
// holds what it complained of.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		complaint := strings.TrimSpace(stderr.String())
		if complaint == "" {
			complaint = strings.TrimSpace(stdout.String())
		}
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, complaint)
	}
	return stdout.String(), nil
}
