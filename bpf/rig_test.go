// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The tests run in a process of their own, in network and mount namespaces and
// a cgroup of its own: everything is gone when it ends.
const (
	envChild  = "MILLRACE_BPF_TEST_CHILD"
	envCgroup = "MILLRACE_BPF_TEST_CGROUP"
)

// skipReason is why tests that need the kernel cannot run here.
var skipReason string

func TestMain(m *testing.M) {
	if path := os.Getenv(envPrivilegesPath); path != "" {
		if err := useEverything(path, os.Getenv(envPrivilegesCgroup)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(envChild) != "" {
		if err := enterRig(); err != nil {
			fmt.Fprintln(os.Stderr, "set up the test's namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	root, err := cgroupRoot()
	switch {
	case os.Geteuid() != 0:
		skipReason = "not root"
	case err != nil:
		skipReason = err.Error()
	default:
		os.Exit(runChild(root))
	}
	os.Exit(m.Run())
}

func runChild(root string) int {
	cgroup := filepath.Join(root, fmt.Sprintf("millrace-bpf-test-%d", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "create the test's cgroup:", err)
		return 1
	}
	defer os.Remove(cgroup)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), envChild+"=1", envCgroup+"="+cgroup)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// The death signal is sent when the thread that forked ends.
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run the tests:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// bpffs is where the child's BPF filesystem is mounted; only the child sees it.
const bpffs = "/mnt"

func enterRig() error {
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a BPF filesystem: %w", err)
	}
	return loUp()
}

func loUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// cgroupRoot finds where the cgroup v2 hierarchy is mounted.
func cgroupRoot() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("no cgroup v2 hierarchy is mounted")
}

// needKernel skips a test where it cannot run.
func needKernel(t testing.TB) {
	t.Helper()
	if skipReason != "" {
		t.Skip(skipReason)
	}
}

// testCgroup makes a cgroup below the test's own.
func testCgroup(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(envCgroup), "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("remove cgroup: %v", err)
		}
	})
	return dir
}

// joinCgroup moves the process there until the test ends. Sockets belong to
// the cgroup in which they were made.
func joinCgroup(t testing.TB, dir string) {
	t.Helper()
	move := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err := move(dir); err != nil {
		t.Fatalf("join cgroup: %v", err)
	}
	t.Cleanup(func() {
		root, _ := cgroupRoot()
		if err := move(root); err != nil {
			t.Errorf("leave cgroup: %v", err)
		}
	})
}

// pinPath is a fresh path for pins, removed with everything in it.
func pinPath(t testing.TB) string {
	t.Helper()
	path := filepath.Join(bpffs, strings.NewReplacer("/", "_", ".", "_").Replace(t.Name()))
	t.Cleanup(func() {
		if err := RemovePins(path); err != nil {
			t.Errorf("remove pins: %v", err)
		}
	})
	return path
}

// testSizes keeps maps small.
func testSizes(o Options) Options {
	if o.MaxFrontends == 0 {
		o.MaxFrontends, o.MaxBackends = 4096, 8192
	}
	o.MaxRoutes, o.MaxIDs = 1024, 1024
	o.MaxEmbryonic = 1024
	if o.MaxEstablished == 0 {
		o.MaxEstablished = 1024
	}
	return o
}

// open opens a dataplane for the test.
func open(t testing.TB, o Options) *Dataplane {
	t.Helper()
	needKernel(t)
	if o.PinPath == "" {
		o.PinPath = pinPath(t)
	}
	d, err := Open(testSizes(o))
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// inNetns runs f in a fresh network namespace.
func inNetns(t testing.TB, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, and with it the namespace, ends here.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		if err := loUp(); err != nil {
			done <- err
			return
		}
		defer close(done)
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// addAddress gives lo an address.
func addAddress(t testing.TB, cidr string) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
	// The kernel inserts the route of an IPv6 address a moment later.
	eventually(t, "there is a route to "+cidr, func() bool {
		routes, err := netlink.RouteGet(addr.IP)
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
	})
}

// veth makes a pair of devices and returns the index of one.
func veth(t testing.TB, name string) int {
	t.Helper()
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(name); err == nil {
			netlink.LinkDel(l)
		}
	})
	i, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return i.Index
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
