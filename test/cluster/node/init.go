// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pauseBetweenStarts is how long a service that ended stays away, as systemd
// would have it.
const pauseBetweenStarts = time.Second

// Init is the first process of a node: it makes the root filesystem, starts
// the services, and starts again what ends. It does not return but with an
// error.
func Init(specPath string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("process %d is not the first of its namespace", os.Getpid())
	}
	spec, err := Read(specPath)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return fmt.Errorf("naming the node: %w", err)
	}
	if err := spec.enterRoot(); err != nil {
		return fmt.Errorf("making the root filesystem of %s: %w", spec.Name, err)
	}
	for _, dir := range []string{ServiceDir, "/var/log"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	due := make(chan *Service)
	running := map[int]*Service{}
	start := func(service *Service) error {
		pid, err := service.start()
		running[pid] = service
		return err
	}
	for i := range spec.Services {
		if err := start(&spec.Services[i]); err != nil {
			return err
		}
	}
	for {
		select {
		case <-children:
			for _, service := range collect(running) {
				time.AfterFunc(pauseBetweenStarts, func() { due <- service })
			}
		case service := <-due:
			if err := start(service); err != nil {
				return err
			}
		}
	}
}

// collect waits for children that ended, orphans among them, and returns the
// services that did.
func collect(running map[int]*Service) (ended []*Service) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return ended
		}
		service := running[pid]
		if service == nil {
			continue
		}
		delete(running, pid)
		os.Remove(service.pidFile())
		fmt.Fprintf(os.Stderr, "%s %s ended: exit status %d, signal %v\n",
			time.Now().Format(time.RFC3339), service.Name, status.ExitStatus(), status.Signal())
		ended = append(ended, service)
	}
}

func (s *Service) pidFile() string { return filepath.Join(ServiceDir, s.Name) }

// start starts the service with its output in /var/log. The process is not
// waited for: Init collects all children.
func (s *Service) start() (pid int, err error) {
	log, err := os.OpenFile("/var/log/"+s.Name+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, fmt.Errorf("opening the log of %s: %w", s.Name, err)
	}
	defer log.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	process, err := os.StartProcess(s.Args[0], s.Args, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, log, log},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
	})
	if err != nil {
		return 0, fmt.Errorf("starting %s: %w", s.Name, err)
	}
	pid = process.Pid // Release forgets it
	if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return 0, err
	}
	return pid, process.Release()
}
