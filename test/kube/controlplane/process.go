// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/millrace-project/millrace/test/testbed"
)

// process is one of the control plane's; a nil one was not started.
type process struct{ *testbed.Process }

// startProcess starts a program in the network namespace at path netns.
func startProcess(netns, logDir, program string, args ...string) (*process, error) {
	p, err := testbed.Spawn(logDir, filepath.Base(program), append([]string{program}, args...), func(cmd *exec.Cmd) error {
		// A process group of its own: an interrupt at the terminal must reach the
		// test alone, which then stops the API server before etcd.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return inNetNS(netns, cmd.Start)
	})
	if err != nil {
		return nil, err
	}
	return &process{p}, nil
}

// stop ends the process, first politely, and waits until it is gone.
func (p *process) stop(patience time.Duration) error {
	if p == nil {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.Done():
		return nil
	case <-time.After(patience):
		return p.kill()
	}
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() error {
	if p == nil {
		return nil
	}
	return p.Kill()
}

// waitReady polls ready until it holds, the process is gone, or ctx ends.
func (p *process) waitReady(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.Done():
			cancel(fmt.Errorf("it ended (%v)", p.Err()))
		case <-ctx.Done():
		}
	}()
	if err := testbed.Eventually(ctx, func() error { return ready(ctx) }); err != nil {
		return fmt.Errorf("%s is not ready: %w; its log ends with:\n%s", p.Name, err, p.LogTail(20))
	}
	return nil
}
