// SPDX-License-Identifier: Apache-2.0

// Package machine runs plans of package guest in virtual machines and tells
// what came of them.
package machine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/millrace-project/millrace/test/kernels/guest"
)

// Machine is a virtual machine to be.
type Machine struct {
	Kernel  string // file of the kernel
	Initrd  string // file of the initial filesystem
	Dir     string // directory for a socket and the console's text
	Memory  int    // MiB
	Threads int    // processors

	// Keep, if given, is a directory in which everything that the machine says
	// is written down while it says it.
	Keep string
}

// Result is what a run came to.
type Result struct {
	Run    string
	Output []byte
	Status int
	Ended  bool
}

// Outcome is what a machine did.
type Outcome struct {
	Release string
	Results []*Result
	Console string
	// Err tells why not all runs of the plan have ended.
	Err error
}

// Run starts the machine and returns when it has switched itself off. seen is
// called with each report.
func (m Machine) Run(ctx context.Context, seen func(guest.Report)) (*Outcome, error) {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("other kernels need qemu: %w", err)
	}
	socket := filepath.Join(m.Dir, "results")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for results: %w", err)
	}
	defer listener.Close()
	defer os.Remove(socket)
	console := filepath.Join(m.Dir, "console")
	if m.Keep != "" {
		if err := os.MkdirAll(m.Keep, 0o755); err != nil {
			return nil, err
		}
		console = filepath.Join(m.Keep, "console")
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program,
		// A PC, for its clocks: a microvm's kernel measures its only one against
		// an interval timer, and hangs when the host is too busy for that.
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-machine", "pc",
		"-smp", fmt.Sprint(m.Threads), "-m", fmt.Sprint(m.Memory),
		"-nographic", "-vga", "none", "-nic", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-serial", "file:"+console,
		"-chardev", "socket,id=results,path="+socket, "-serial", "chardev:results",
		"-kernel", m.Kernel, "-initrd", m.Initrd,
		// Tests that hang must not be ended by the kernel's watchdogs: what is slow
		// here is the emulation. Mitigations cost time and protect nothing.
		"-append", "console=ttyS0 quiet panic=-1 nowatchdog mitigations=off rdinit=/init",
	)
	cmd.Stdout, cmd.Stderr = &said, &said
	// Tests that run out of time end without ending it. The death signal is sent
	// when the thread that forked ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	o := &Outcome{}
	var wait sync.WaitGroup
	wait.Go(func() { o.Err = o.collect(listener, m.Keep, seen) })
	ended := cmd.Wait()
	listener.Close()
	wait.Wait()
	text, err := os.ReadFile(console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the console: %w", err)
	}
	o.Console = string(text) + said.String()
	switch {
	case ctx.Err() != nil:
		o.Err = errors.Join(fmt.Errorf("the virtual machine was ended: %w", context.Cause(ctx)), o.Err)
	case ended != nil:
		o.Err = errors.Join(fmt.Errorf("qemu: %w", ended), o.Err)
	}
	return o, nil
}

// collect reads reports until the machine is gone.
func (o *Outcome) collect(listener net.Listener, keep string, seen func(guest.Report)) error {
	conn, err := listener.Accept()
	if err != nil {
		return fmt.Errorf("the virtual machine did not start: %w", err)
	}
	defer conn.Close()
	lines := bufio.NewReader(conn)
	runs := map[string]*Result{}
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return errors.New("the virtual machine ended without having done everything")
		}
		var r guest.Report
		// The line's first bytes may be the firmware's.
		if err := json.Unmarshal([]byte(line[max(0, strings.Index(line, "{")):]), &r); err != nil {
			return fmt.Errorf("report %q: %w", line, err)
		}
		seen(r)
		switch r.Kind {
		case guest.KindBoot:
			o.Release = r.Text
		case guest.KindStart:
			runs[r.Run] = &Result{Run: r.Run}
			o.Results = append(o.Results, runs[r.Run])
		case guest.KindOutput:
			runs[r.Run].Output = append(runs[r.Run].Output, r.Data...)
			if keep != "" {
				if err := appendTo(filepath.Join(keep, strings.ReplaceAll(r.Run, "/", "_")), r.Data); err != nil {
					return err
				}
			}
		case guest.KindEnd:
			runs[r.Run].Ended, runs[r.Run].Status = true, r.Status
		case guest.KindError:
			return errors.New("guest: " + r.Text)
		case guest.KindDone:
			return nil
		}
	}
}

func appendTo(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}
