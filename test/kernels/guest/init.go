// SPDX-License-Identifier: Apache-2.0

//go:build linux

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// environment of every program.
var environment = []string{
	"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp", "LD_LIBRARY_PATH=/lib",
	// Go's listeners are MPTCP otherwise, which socket programs do not see.
	"GODEBUG=multipathtcp=0",
}

// Main does everything that a guest is for and switches the machine off.
func Main() {
	reports, err := openReports()
	if err != nil {
		fmt.Println("guest:", err) // on the console
	} else if err := work(reports); err != nil {
		reports.send(Report{Kind: KindError, Text: err.Error()})
	} else {
		reports.send(Report{Kind: KindDone})
	}
	if reports != nil {
		reports.drain()
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) //nolint:errcheck // nothing is left that could be done
	select {}
}

// reports is the serial line to whoever started the guest.
type reports struct {
	mu   sync.Mutex
	file *os.File
}

// openReports opens the line, as bytes that nobody interprets.
func openReports() (*reports, error) {
	if err := os.MkdirAll("/dev", 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("mount /dev: %w", err)
	}
	file, err := os.OpenFile(ResultsDevice, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the line for reports: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("line for reports: %w", err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = t.Cflag&^unix.CBAUD | unix.B115200 | unix.CLOCAL
	if err := unix.IoctlSetTermios(int(file.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("line for reports: %w", err)
	}
	return &reports{file: file}, nil
}

func (r *reports) send(report Report) {
	line, err := json.Marshal(report)
	if err != nil {
		line = []byte(fmt.Sprintf(`{"Kind":%q,"Text":"a report cannot be encoded"}`, KindError))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.file.Write(append(line, '\n')) //nolint:errcheck // nobody else could be told
}

// drain waits until everything has left.
func (r *reports) drain() {
	unix.IoctlSetInt(int(r.file.Fd()), unix.TCSBRK, 1) //nolint:errcheck // nobody else could be told
}

// writer sends what is written as the output of a run.
type writer struct {
	reports *reports
	run     string
}

func (w writer) Write(data []byte) (int, error) {
	w.reports.send(Report{Kind: KindOutput, Run: w.run, Data: data})
	return len(data), nil
}

func work(reports *reports) error {
	if err := mounts(); err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("ask the kernel's release: %w", err)
	}
	reports.send(Report{Kind: KindBoot, Text: unix.ByteSliceToString(uts.Release[:])})
	text, err := os.ReadFile(PlanPath)
	if err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	var plan Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	for _, name := range plan.Modules {
		if err := loadModule(name); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	if err := os.Setenv("PATH", "/bin"); err != nil {
		return err
	}
	for _, run := range plan.Runs {
		reports.send(Report{Kind: KindStart, Run: run.Name})
		status := execute(run, writer{reports, run.Name})
		reports.send(Report{Kind: KindEnd, Run: run.Name, Status: status})
	}
	return nil
}

// mounts makes the filesystems that programs expect.
func mounts() error {
	for _, m := range []struct{ kind, at, options string }{
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"bpf", "/sys/fs/bpf", "mode=0700"},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"tmpfs", "/run", "mode=0755"},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/var", "mode=0755"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	return os.MkdirAll("/mnt", 0o755)
}

func loadModule(name string) error {
	file, err := os.Open(filepath.Join(ModuleDir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// execute runs a program to its end and returns its status.
func execute(run Run, out io.Writer) int {
	ctx, cancel := context.WithTimeout(context.Background(), run.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, run.Path, run.Args...)
	cmd.Dir, cmd.Env = run.Dir, append(append([]string(nil), environment...), run.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	// A test that runs out of time tells where it hangs.
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGQUIT) }
	cmd.WaitDelay = run.Timeout / 10
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(out, "guest:", err)
		return -1
	}
	return cmd.ProcessState.ExitCode()
}
